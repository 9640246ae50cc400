"""How much each width of each weight and activation changes the outputs, in one pass over data.

    E[(∂(vᵀy)/∂W · ΔW)²] = E[(vᵀ J ΔW)²] = ‖J ΔW‖²        v = ±1 at random, J = ∂y/∂W

y are all of the model's outputs, ΔW = Ŵ - W the error of rounding W. To first order J ΔW is what
that does to y, and ‖J ΔW‖² the quadratic form of ΔW with the Gauss-Newton matrix JᵀJ, the Hessian
of half the squared change of the outputs. The random signs are Hutchinson's ("A stochastic
estimator of the trace", 1990), as in HAWQ (Dong et al., "HAWQ-V2: Hessian aware trace-weighted
quantization", 2020), which multiplies the Hessian's mean eigenvalue by ‖ΔW‖²; here the form itself
is taken. The gradients of one backward pass serve all layers and all widths.

Signs differ from sample to sample, so the products of different samples are 0 in the mean, and the
square of a batch's sum estimates the sum of its samples' squares. The same holds for activations,
with the gradient of each and the error of rounding it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calibration.first_calls import stop_comparing
from fxquant.calibration.input_keeper import stop_keeping_inputs, unbatched_rank_of
from fxquant.calibration.regrouping import takes_size
from fxquant.calling.arguments import arguments_of
from fxquant.calling.batching import Batches
from fxquant.calling.explanation import explained
from fxquant.calling.loaders import require_batches
from fxquant.errors import CalibrationError
from fxquant.graph.states import require_prepared
from fxquant.mixed_precision.options import Options
from fxquant.mixed_precision.placing import place_probes
from fxquant.modules.copies import copy_module, detach_results
from fxquant.numerics.containers import tensors_in
from fxquant.recipe.budget import Budget
from fxquant.streaming.distributed import gather_objects, together
from fxquant.streaming.long_runs import bar
from fxquant.streaming.running import Arguments, copied_to, device_of

_logger = logging.getLogger("fxquant")


def measure_sensitivities(
    prepared: nn.Module,
    batches: Iterable[Any],
    budget: Budget,
    *,
    draws: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Options:
    """Return what each width of each quantized weight and activation does to the outputs.

    Weights and activations are rounded to nearest in the ranges of the recipe, but for the width;
    `Recipe.mixed` counts what learned roundings leave instead. What a rule of the
    recipe gives a width keeps it, and what the recipe leaves in float is left out.

    Args:
        prepared: what `prepare` returned, calibrated; left as it is.
        batches: inputs, as in `calibrate`.
        budget: whose widths are measured; its limits do not matter here.
        draws: of random signs for each batch; each costs a backward pass.
        batch_size: samples that run at a time, where a batch can be split. A loss is the mean of
            the squares of about normal variables, one for each batch and draw: of 64 it is off by
            √(2/64), 18 %.
        seed: of the signs.
        progress: show a bar; None means where there is a terminal or a notebook.

    Returns:
        A sequence of options that prints as a table, and has `worst`, `select`, `to_csv` and so on:
            those of one name and side after those of another: weights first, in execution order.

    Raises:
        PassError: `prepared` did not come from `prepare`.
        CalibrationError: it has seen no batch, `batches` is empty, the outputs have no gradient, or
            one is not finite.
    """
    require_batches(batches, "measure_sensitivities", prepared)
    calls = (
        arguments_of(prepared, batch, f"batch {number}") for number, batch in enumerate(batches)
    )
    total = len(batches) if isinstance(batches, Sized) else None
    shown = bar(calls, "measuring", progress, total=total)
    with together("measure_sensitivities"):
        return sensitivities_on(
            prepared, shown, budget, draws=draws, batch_size=batch_size, seed=seed
        )


def sensitivities_on(
    prepared: nn.Module,
    calls: Iterable[Arguments],
    budget: Budget,
    *,
    draws: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    rounded: Mapping[int, nn.Module] | None = None,
    keep_rules: bool = True,
) -> Options:
    """Return `measure_sensitivities` for the arguments of calls.

    `rounded` are models with weights and biases learned at each width, whose errors count in place
    of those of rounding to nearest. Without `keep_rules` what a rule gives a width has others too.
    """
    recipe = require_prepared(prepared, "measure_sensitivities")
    model = copy_module(prepared)
    stop_comparing(model)
    stop_keeping_inputs(model)
    rank = unbatched_rank_of(model)
    model.requires_grad_(False)
    probes = place_probes(model, recipe, budget, rounded or {}, keep_rules=keep_rules)
    generator = torch.Generator().manual_seed(seed)
    samples, is_split = 0, True
    for number, arguments in enumerate(calls):
        whole = Batches([arguments], rank)
        if number == 0:
            is_split = takes_size(prepared, whole, batch_size)
        parts = whole.of_size(batch_size) if is_split else whole
        samples += parts.num_samples
        for part in parts.arguments:
            outputs = _outputs(model, part, f"batch {number}")
            for draw in range(draws):
                signs = [_signs(output, generator) for output in outputs]
                torch.autograd.backward(outputs, signs, retain_graph=draw < draws - 1)
                for probe in probes:
                    probe.add_up()
            detach_results(model)
    samples = sum(gather_objects(samples))
    if samples == 0:
        raise CalibrationError("measure_sensitivities: `batches` is empty: give at least one batch")
    options = Options(tuple(each for probe in probes for each in probe.options(samples, draws)))
    unreached = [probe.name for probe in probes if probe.is_unreached]
    if unreached:
        _logger.warning(
            "no gradient of the outputs reaches %d weights, which keep their bits: %s",
            len(unreached),
            ", ".join(unreached[:3]) + (", …" if len(unreached) > 3 else ""),
        )
    return options


def _outputs(model: nn.Module, arguments: Arguments, where: str) -> list[Tensor]:
    """Run the model; return those of its outputs that have a gradient."""
    copied = copied_to(device_of(model), arguments)
    with torch.enable_grad(), explained(where, arguments):
        found = tensors_in(model(*copied))
    outputs = [each for each in found if each.requires_grad]
    if not outputs:
        raise CalibrationError(
            f"{where}: none of the model's outputs has a gradient, so nothing tells what roundings "
            "do to them: return floating-point tensors that are not detached"
        )
    return outputs


def _signs(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return -1 or 1 at random for each value of `output`."""
    ones = torch.randint(0, 2, output.shape, generator=generator)
    return (2 * ones - 1).to(output.device, output.dtype)
