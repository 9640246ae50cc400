"""What a recipe costs a model, where that comes from, and what helps.

found = fxquant.analyze(model, loader, fxquant.Recipe.aciq(weight_bits=4, activation_bits=4))
print(found)
better = fxquant.quantize(model, loader, found.remedies[0].recipe)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from fxquant.analysis.bench import Bench
from fxquant.analysis.judge import Judge
from fxquant.analysis.result import Analysis
from fxquant.analysis.study import Data, Study
from fxquant.analysis.variants import without_learning
from fxquant.api import calibrated_copy
from fxquant.calling.arguments import Forward
from fxquant.calling.batching import Batches
from fxquant.calling.loaders import no_batches, require_batches
from fxquant.capture.given_models import unwrapped
from fxquant.conversion import converted, smoothed
from fxquant.errors import RecipeError
from fxquant.graph.states import require_float
from fxquant.recipe.given import as_recipe
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.long_runs import Run, bar

_JUDGED = 4  # of so many batches one judges
_QUIET = Run(progress=False)


def analyze(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    forward: Forward | None = None,
    example_inputs: Any = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
    verify: bool = True,
    samples: int = 64,
    progress: bool | None = None,
) -> Analysis:
    """Say what a recipe costs, how much of it each weight and activation is due, and what helps.

    Rounding is to nearest: what a recipe learns is left out, for learning takes minutes, and what
    it makes up for is what this tells. Remedies are tried: models are quantized and judged.

    Args:
        model: left as it is.
        batches: calibration data, as in `fxquant.quantize`; kept in memory, left as they are. Every
            fourth is set aside to judge by, if there are two or more.
        recipe: as in `fxquant.prepare`.
        evaluate: returns the score of a model, a copy in eval mode; higher is better. None: points
            are the percentage of decisions (largest outputs) that are the float model's. It is
            called about 20 times.
        forward: as in `fxquant.calibrate`; what it returns is judged.
        example_inputs: as in `fxquant.quantize`, with `leaf_modules`, `regions` and `verify`.
        leaf_modules: see there.
        regions: see there.
        verify: see there.
        samples: how many run with gradients, for the ranking.
        progress: show a bar; None means where there is a terminal.

    Raises:
        CalibrationError: no batch; outputs that cannot be compared, without `evaluate`.
        RecipeError: `samples` is not positive, or as `fxquant.prepare`.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> data = [torch.randn(16, 8) for _ in range(8)]
    >>> found = analyze(model, data, Recipe.minmax(weight_bits=2))
    >>> [each.side for each in found.costs]
    ['weights', 'weights', 'activations', 'activations']
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    if samples < 1:
        raise RecipeError(f"analyze: samples={samples}: give a positive number")
    require_float(model)
    require_batches(batches, "analyze", model, forward)
    asked = as_recipe(recipe)
    model, kept = unwrapped(model), list(batches)
    if not kept:
        raise no_batches(batches, "analyze")
    judged = range(_JUDGED - 1, len(kept), _JUDGED) or range(len(kept) - 1, len(kept))
    is_held_out = len(kept) > 1
    learned = [
        batch for number, batch in enumerate(kept) if number not in judged or not is_held_out
    ]
    steps = _steps(progress)
    before = time.process_time()
    judge = Judge(model, [kept[number] for number in judged], evaluate, forward)
    float_seconds = (time.process_time() - before) / 2 * len(kept) / len(judged)
    bench = bench_for(
        model,
        learned,
        without_learning(asked),
        forward=forward,
        example_inputs=example_inputs,
        leaf_modules=leaf_modules,
        regions=regions,
        verify=verify,
    )
    study = Study(bench, judge, asked, steps)
    num_judged = _num_samples(kept[number] for number in judged)
    data = Data(
        num_samples=_num_samples(kept),
        num_judged=num_judged,
        is_held_out=is_held_out,
        float_seconds=float_seconds,
        started=started,
        started_cpu=started_cpu,
    )
    return study.analysis(data, samples)


def bench_for(model: nn.Module, batches: Sequence[Any], recipe: Recipe, **options: Any) -> Bench:
    """Return what makes models of any recipe, calibrated once.

    Args:
        model: left as it is.
        batches: calibration data.
        recipe: the one that is studied, without learning.
        options: to `fxquant.quantize`: `forward`, `example_inputs`, `leaf_modules`, …
    """
    nothing = {"forward": None, "example_inputs": None, "leaf_modules": (), "regions": None}
    options = {**nothing, "verify": True, "progress": False, **options}
    return Bench(
        recipe,
        partial(calibrated_copy, model, batches, **options),
        partial(converted, run=_QUIET),
        partial(smoothed, run=_QUIET),
    )


def _num_samples(batches: Iterable[Any]) -> int:
    return Batches([(batch,) for batch in batches]).num_samples


def _steps(progress: bool | None) -> Iterator[Any]:
    """Return what shows a bar, step by step."""
    return bar(itertools.count(), "analyzing", progress, unit="step", total=25)
