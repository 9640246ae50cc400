"""prepare → calibrate → convert: the passes in their order."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from tqdm import tqdm

from fxquant.calibration import check_calibrated, combine_observers, require_finite, was_called
from fxquant.calls import are_aligned, record_calls, regions_in_order
from fxquant.errors import CalibrationError, CaptureError
from fxquant.examples import check_folding, run_examples
from fxquant.inputs import (
    arguments_of,
    collect_inputs,
    find_keeper,
    keep_inputs,
    stop_keeping_inputs,
)
from fxquant.keeper import Arguments
from fxquant.meta import Untraced, read_untraced, write_journals
from fxquant.observers import ChannelMean, Observer
from fxquant.partition import capture
from fxquant.passes import (
    AbsorbBatchNorm,
    ChooseRanges,
    CorrectBias,
    CorrectWeights,
    DropIdentities,
    DropObservers,
    FoldBatchNorm,
    InsertObservers,
    LiftFunctionals,
    MarkFusedRelu,
    QuantizeWeights,
    ReconstructRounding,
)
from fxquant.pipeline import Pipeline
from fxquant.recipe import Recipe
from fxquant.reconstruction import Reconstruction
from fxquant.region import Region, find_regions
from fxquant.selection import check_rules, select_calls
from fxquant.states import require_float, require_prepared
from fxquant.values import ValueStore

_NEVER = "never called in calibration"
Forward = Callable[[nn.Module, Any], Any]


def prepare(
    model: nn.Module,
    recipe: Recipe | str | None = None,
    *,
    example_inputs: Any = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
) -> nn.Module:
    """Return a copy of `model`, batch norms folded and observers in place, ready to calibrate.

    Where the model can be traced whole, the copy is a `GraphModule`. Else it is of the model's own
    type, and its largest traceable submodules are `GraphModule`s (`fxquant.partition`); `report`
    lists them, and what stayed in float.

    Args:
        model: left as it is. The copy is put in eval mode.
        recipe: a `Recipe`, or "aciq" or "minmax" for one at 8/8 bits, or "adaround" for 4/8. None
            means "aciq".
        example_inputs: optional: one batch (a tensor, a tuple of arguments, or a dict of keywords).
            Tells the ranks of tensors, and checks that folding left the outputs as they were.
        leaf_modules: types, or globs on names, of submodules to leave whole and in float.
        regions: names of the submodules to trace, instead of as much as can be.

    Raises:
        CaptureError: nothing with a layer in it can be traced, or is left to quantize.
        RecipeError: a rule of the recipe matches nothing.
        PassError: the model is prepared or converted already.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> prepared(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    recipe = _recipe(recipe)
    require_float(model)
    captured = capture(model, leaf_modules=leaf_modules, regions=regions)
    prepared = captured.model
    graphs = find_regions(prepared).values()
    examples = [] if example_inputs is None else run_examples(prepared, example_inputs)
    fold = Pipeline(
        DropIdentities(), LiftFunctionals(), FoldBatchNorm(), AbsorbBatchNorm(), MarkFusedRelu()
    )
    for gm in graphs:
        fold(gm)
    check_folding(examples)
    check_rules(graphs, recipe)
    calls = [call for gm in graphs for call in select_calls(gm, recipe).values()]
    if not any(call.weights for call in calls):
        raise CaptureError(
            f"{type(model).__name__} has nothing to quantize: {len(calls)} convolution, linear and "
            "addition calls were found, and no layer among them is left to quantize"
        )
    for gm in graphs:
        InsertObservers(recipe)(gm)
    if recipe.reconstruction is not None:
        keep_inputs(prepared, recipe.reconstruction.samples)
    write_journals(prepared, recipe, captured.untraced)
    return prepared


def calibrate(
    prepared: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Run `prepared` over `batches`, check what was seen, and return `prepared`.

    The same as `for x in batches: prepared(x)`, with a progress bar and checks. Call it as often as
    you like: the statistics add up. Where nothing is observed, with weights only, batches are kept
    for a reconstruction, if there is one, and the model is not run.

    Args:
        prepared: what `prepare` returned.
        batches: any iterable. A tensor is passed as it is; of a tuple or list the first item is
            the input; a dict is passed as keywords.
        forward: called as `forward(prepared, batch)` instead, for anything else.
        progress: show a bar; None means where there is a terminal.

    Raises:
        CalibrationError: no batch, a batch of a type that is not understood, NaN or infinity.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> _ = calibrate(prepared, [torch.tensor([[-1.0, 0.0, 2.0, 3.0]])])
    >>> prepared.observers.input_1.high
    tensor(3.)
    """
    require_prepared(prepared, "calibrate")
    total = len(batches) if isinstance(batches, Sized) else None
    disable = None if progress is None else not progress
    number, keeper = -1, find_keeper(prepared)
    with torch.no_grad():
        for number, batch in enumerate(
            tqdm(batches, "calibrating", total, disable=disable, delay=1, unit="batch")
        ):
            run = partial(forward or partial(_forward, f"batch {number}"), prepared, batch)
            kept = len(keeper.batches) if keeper is not None else 0
            run()
            try:
                require_finite(prepared, run, number)
            except CalibrationError:
                if keeper is not None:
                    keeper.forget_from(kept)
                raise
    if number < 0:
        raise CalibrationError("calibrate: `batches` is empty: give at least one batch")
    return prepared


def convert(
    prepared: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Return the fake-quantized model: integer weights, and activations rounded to their grids.

    Under an initialized `torch.distributed` group every rank calls this on what it calibrated with
    its share of the data; statistics and gradients are summed, and all ranks get the same model.

    Args:
        prepared: what `prepare` returned, calibrated; left as it is.
        batches: what a reconstruction learns from, as in `calibrate`; None: what `prepared` was
            calibrated on. Without a reconstruction in the recipe no data is needed.
        checkpoint: a folder for the layers that a reconstruction has finished. Killed at any moment
            and started again, it goes on with the first unfinished layer, to the same result.
        progress: show a bar; None means where there is a terminal.

    Raises:
        PassError: `prepared` did not come from `prepare`.
        CalibrationError: it has seen no batch, or a layer's data is not finite.
        StorageError: the checkpoint belongs to another model, recipe or data; the disk is full.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> _ = calibrate(prepared, [torch.tensor([[-1.0, 0.0, 2.0, 3.0]])])
    >>> convert(prepared).get_submodule("0").weight_integers.dtype
    torch.int8
    """
    recipe = require_prepared(prepared, "convert")
    inputs = []
    if recipe.reconstruction is not None:
        inputs = collect_inputs(prepared, recipe.reconstruction, batches)
    model = copy.deepcopy(prepared)
    stop_keeping_inputs(model)
    combine_observers(model)
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
    reference = _float_model(model) if recipe.reconstruction or recipe.bias_correction else None
    for gm in graphs.values():
        Pipeline(ChooseRanges(), MarkFusedRelu(), QuantizeWeights(recipe))(gm)
    if reference is not None and recipe.reconstruction is not None:
        _reconstruct(
            model, reference, list(graphs), inputs, recipe.reconstruction, checkpoint, progress
        )
    if reference is not None and recipe.bias_correction:
        correct = CorrectWeights if recipe.bias_correction == "weights" else CorrectBias
        floats = find_regions(reference)
        for path, gm in graphs.items():
            correct(floats[path])(gm)
    write_journals(model, recipe, (*read_untraced(model), *uncalled, *_release_parts(model)))
    return model


def _release_parts(model: nn.Module) -> list[Untraced]:
    """Drop what of the regions nobody calls by itself; return what stays, to report."""
    return [
        Untraced(f"{path}.{name}", kind, "called from Python by itself: a float copy of it stays")
        for path, gm in find_regions(model).items()
        if isinstance(gm, Region)
        for name, kind in gm.release_parts().items()
    ]


def _uncalled(model: nn.Module) -> list[Untraced]:
    """Return the regions that calibration never ran through, which stay in float, to report."""
    uncalled = []
    for path, gm in find_regions(model).items():
        if isinstance(gm, Region) and not was_called(gm):
            parts = ", ".join(f"{path}.{name}" for name in gm.calls.parts)
            reason = f"never called as a whole, only {parts}: name these with regions=[…]"
            uncalled.append(Untraced(path, type(gm).__name__, reason if parts else _NEVER))
    return uncalled


def _float_model(model: nn.Module) -> nn.Module:
    """Return a copy of a calibrated model without its observers."""
    copied = copy.deepcopy(model)
    for gm in find_regions(copied).values():
        DropObservers()(gm)
    return copied


def _reconstruct(
    model: nn.Module,
    reference: nn.Module,
    paths: Sequence[str],
    inputs: Sequence[Arguments],
    options: Reconstruction,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool | None,
) -> None:
    """Learn the roundings of the graphs `paths` of `model`, in the order in which it calls them.

    Of a model that is not one graph, both it and its reference run once for each region.
    """
    floats = find_regions(reference)
    for path, gm in regions_in_order(model, inputs).items():
        if path not in paths:
            continue
        reference_gm = floats[path]
        if not isinstance(gm, Region) or not isinstance(reference_gm, Region):
            ReconstructRounding(reference_gm, inputs, options, checkpoint, progress)(gm)
            continue
        with ValueStore(options.max_bytes) as store:
            calls = record_calls(model, gm, inputs, store)
            if len(calls) == 0:
                continue
            reference_calls = record_calls(reference, reference_gm, inputs, store)
            if not are_aligned(calls, reference_calls):
                reference_calls = calls
            ReconstructRounding(
                reference_gm,
                calls,
                options,
                None if checkpoint is None else Path(checkpoint, path),
                progress,
                reference_calls,
            )(gm)


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    forward: Forward | None = None,
    example_inputs: Any = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Return `convert(calibrate(prepare(model), batches))`; see there.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> quantized = quantize(model, [torch.randn(16, 8)], Recipe.minmax())
    >>> type(quantized.get_submodule("0")).__name__
    'QuantizedLinear'
    """
    prepared = prepare(
        model, recipe, example_inputs=example_inputs, leaf_modules=leaf_modules, regions=regions
    )
    calibrate(prepared, batches, forward=forward, progress=progress)
    return convert(prepared, checkpoint=checkpoint, progress=progress)


def _recipe(recipe: Recipe | str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.named("aciq" if recipe is None else recipe)


def _forward(where: str, model: nn.Module, batch: Any) -> Any:
    arguments = arguments_of(model, batch, where)
    observed = any(isinstance(module, (Observer, ChannelMean)) for module in model.modules())
    if observed or not isinstance(model, fx.GraphModule):  # regions note what is called
        return model(*arguments)
    keeper = find_keeper(model)
    return keeper(*arguments) if keeper is not None else None
