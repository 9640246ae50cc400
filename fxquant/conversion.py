"""From a calibrated model to a fake-quantized one: the passes behind `fxquant.convert`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

from torch import fx, nn

from fxquant.calibration.input_keeper import stop_keeping_inputs
from fxquant.calibration.observed import check_calibrated, combine_observers, was_called
from fxquant.calibration.region_calls import are_aligned, record_calls, regions_in_order
from fxquant.capture.naming import Untraced, find_regions
from fxquant.capture.region import Region
from fxquant.errors import CalibrationError
from fxquant.graph.journal import read_untraced, write_journals
from fxquant.mixed_precision.resolve import set_bits, with_bits
from fxquant.passes.convert.choose_ranges import ChooseRanges
from fxquant.passes.convert.correct_bias import CorrectBias
from fxquant.passes.convert.correct_weights import CorrectWeights
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.convert.quantize_weights import QuantizeWeights
from fxquant.passes.convert.reconstruct_blocks import ReconstructBlocks
from fxquant.passes.convert.reconstruct_rounding import ReconstructRounding
from fxquant.passes.convert.tune_batchnorm import TuneBatchNorm
from fxquant.passes.pipeline import Pass, Pipeline
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.passes.prepare.mark_fused_relu import MarkFusedRelu
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.long_runs import Run
from fxquant.streaming.running import Arguments
from fxquant.streaming.value_store import ValueStore

_NEVER = "never called in calibration"
_Calls = Sequence[Arguments]
_Maker = Callable[[str, fx.GraphModule, _Calls, _Calls | None], Pass]
"""From a region's path, its float graph, what it is called with, and what the float graph is called
with where that differs, to a pass that learns from these."""


def converted(
    prepared: nn.Module,
    recipe: Recipe,
    inputs: _Calls,
    run: Run,
) -> nn.Module:
    """Return what `fxquant.convert` does; `inputs` are the data, if the recipe needs any."""
    is_mixed = recipe.budget is not None
    if is_mixed:
        quick = partial(converted, prepared, run=Run(progress=False))
        recipe = with_bits(prepared, recipe, inputs, quick, run.progress)
    model = copy.deepcopy(prepared)
    stop_keeping_inputs(model)
    combine_observers(model)
    if is_mixed:
        set_bits(model, recipe)
    uncalled = _uncalled(model)
    if len(uncalled) == len(find_regions(model)) and uncalled[0].reason != _NEVER:
        raise CalibrationError(f"convert: {uncalled[0].path!r}: {uncalled[0].reason}")
    check_calibrated(model)
    for left in uncalled:
        DropObservers()(find_regions(model)[left.path])
    graphs = find_regions(model)
    for left in uncalled:
        del graphs[left.path]
    for gm in graphs.values():
        # Calibration told the ranks that were unknown before.
        Pipeline(FoldBatchNorm(), AbsorbBatchNorm())(gm)
    needs_reference = recipe.needs_data or recipe.bias_correction
    reference = _float_model(model) if needs_reference else model
    for gm in graphs.values():
        Pipeline(ChooseRanges(), MarkFusedRelu(), QuantizeWeights(recipe))(gm)
    if recipe.reconstruction is not None:
        learn = _reconstruction(recipe, run)
        _learn(model, reference, list(graphs), inputs, recipe.data.max_bytes, learn)
    if recipe.bias_correction:
        correct = CorrectWeights if recipe.bias_correction == "weights" else CorrectBias
        floats = find_regions(reference)
        for path, gm in graphs.items():
            correct(floats[path])(gm)
    if recipe.batchnorm_tuning:
        tune = _tuning(recipe, run)
        _learn(model, reference, list(graphs), inputs, recipe.data.max_bytes, tune)
    write_journals(model, recipe, (*read_untraced(model), *uncalled, *_release_parts(model)))
    return model


def _reconstruction(recipe: Recipe, run: Run) -> _Maker:
    kind = ReconstructBlocks if recipe.data.blocks else ReconstructRounding

    def make(path: str, reference: fx.GraphModule, calls: _Calls, floats: _Calls | None) -> Pass:
        return kind(reference, calls, recipe.data, run.inside(path), floats)

    return make


def _tuning(recipe: Recipe, run: Run) -> _Maker:
    def make(path: str, reference: fx.GraphModule, calls: _Calls, floats: _Calls | None) -> Pass:
        return TuneBatchNorm(reference, calls, recipe.data, run, floats)

    return make


def _learn(
    model: nn.Module,
    reference: nn.Module,
    paths: Sequence[str],
    inputs: _Calls,
    max_bytes: int | None,
    make: _Maker,
) -> None:
    """Run a pass that learns on the graphs `paths` of `model`, in the order in which it calls them.

    Of a model that is not one graph, both it and its reference run once for each region.
    """
    floats = find_regions(reference)
    for path, gm in regions_in_order(model, inputs).items():
        if path not in paths:
            continue
        reference_gm = floats[path]
        if not isinstance(gm, Region) or not isinstance(reference_gm, Region):
            make(path, reference_gm, inputs, None)(gm)
            continue
        with ValueStore(max_bytes) as store:
            calls = record_calls(model, gm, inputs, store)
            if len(calls) == 0:
                continue
            reference_calls = record_calls(reference, reference_gm, inputs, store)
            if not are_aligned(calls, reference_calls):
                reference_calls = calls
            make(path, reference_gm, calls, reference_calls)(gm)


def _float_model(model: nn.Module) -> nn.Module:
    """Return a copy of a calibrated model without its observers."""
    copied = copy.deepcopy(model)
    for gm in find_regions(copied).values():
        DropObservers()(gm)
    return copied


def _uncalled(model: nn.Module) -> list[Untraced]:
    """Return the regions that calibration never ran through, which stay in float, to report."""
    uncalled = []
    for path, gm in find_regions(model).items():
        if isinstance(gm, Region) and not was_called(gm):
            parts = ", ".join(f"{path}.{name}" for name in gm.calls.parts)
            reason = f"never called as a whole, only {parts}: name these with regions=[…]"
            uncalled.append(Untraced(path, type(gm).__name__, reason if parts else _NEVER))
    return uncalled


def _release_parts(model: nn.Module) -> list[Untraced]:
    """Drop what of the regions nobody calls by itself; return what stays, to report."""
    return [
        Untraced(f"{path}.{name}", kind, "called from Python by itself: a float copy of it stays")
        for path, gm in find_regions(model).items()
        if isinstance(gm, Region)
        for name, kind in gm.release_parts().items()
    ]
