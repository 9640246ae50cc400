"""prepare → calibrate → convert: the passes in their order."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from tqdm import tqdm

from fxquant.calibration import (
    check_calibrated,
    combine_observers,
    first_nonfinite,
    forget_nonfinite,
    nonfinite_tensors,
)
from fxquant.capture import trace
from fxquant.errors import CalibrationError, CaptureError, PassError
from fxquant.fakequant import FakeQuantize, QuantizedLayer, sqnr
from fxquant.inputs import (
    arguments_of,
    collect_inputs,
    find_keeper,
    keep_inputs,
    positional,
)
from fxquant.keeper import InputKeeper
from fxquant.meta import read_journal, write_journal
from fxquant.observers import ChannelMean, Observer
from fxquant.passes import (
    AbsorbBatchNorm,
    ChooseRanges,
    CorrectBias,
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
from fxquant.selection import select_calls

_logger = logging.getLogger("fxquant")
_MIN_FOLDING_SQNR = 40.0  # dB; float16 folds to about 60, a wrong fold to less than 20

Forward = Callable[[nn.Module, Any], Any]


def prepare(
    model: nn.Module, recipe: Recipe | str | None = None, *, example_inputs: Any = None
) -> fx.GraphModule:
    """Return a copy of `model`, batch norms folded and observers in place, ready to calibrate.

    Args:
        model: any traceable module; left as it is. The copy is put in eval mode.
        recipe: a `Recipe`, or "aciq" or "minmax" for one at 8/8 bits, or "adaround" for 4/8. None
            means "aciq".
        example_inputs: optional: one batch (a tensor, a tuple of arguments, or a dict of keywords).
            Tells the ranks of tensors, and checks that folding left the outputs as they were.

    Raises:
        CaptureError: the model cannot be traced, or has nothing to quantize.
        RecipeError: a rule of the recipe matches nothing.
        PassError: the model is prepared or converted already.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> prepared(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    recipe = _recipe(recipe)
    _require_float(model)
    gm = trace(model)
    expected = None
    if example_inputs is not None:
        expected = _run_examples(gm, example_inputs)
    Pipeline(
        DropIdentities(), LiftFunctionals(), FoldBatchNorm(), AbsorbBatchNorm(), MarkFusedRelu()
    )(gm)
    if expected is not None:
        _check_folding(gm, example_inputs, expected)
    calls = select_calls(gm, recipe)
    if not any(call.weights for call in calls.values()):
        raise CaptureError(
            f"{type(model).__name__} has nothing to quantize: {len(calls)} convolution, linear and "
            "addition calls were found, and no layer among them is left to quantize"
        )
    InsertObservers(recipe)(gm)
    if recipe.reconstruction is not None:
        keep_inputs(gm, recipe.reconstruction.samples)
    write_journal(gm, recipe)
    return gm


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
    gm = _require_prepared(prepared, "calibrate")
    total = len(batches) if isinstance(batches, Sized) else None
    disable = None if progress is None else not progress
    number, keeper = -1, find_keeper(gm)
    with torch.no_grad():
        for number, batch in enumerate(
            tqdm(batches, "calibrating", total, disable=disable, delay=1, unit="batch")
        ):
            run = partial(forward or partial(_forward, f"batch {number}"), prepared, batch)
            kept = len(keeper.batches) if keeper is not None else 0
            run()
            try:
                _require_finite(gm, run, number)
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
) -> fx.GraphModule:
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
    gm = _require_prepared(prepared, "convert")
    recipe = read_journal(gm)
    assert recipe is not None
    inputs = []
    if recipe.reconstruction is not None:
        inputs = collect_inputs(gm, recipe.reconstruction, batches)
    gm = copy.deepcopy(gm)
    DropObservers((InputKeeper,))(gm)
    combine_observers(gm)
    check_calibrated(gm)
    # Calibration told the ranks that were unknown before.
    Pipeline(FoldBatchNorm(), AbsorbBatchNorm())(gm)
    reference = _float_model(gm) if recipe.reconstruction or recipe.bias_correction else None
    Pipeline(ChooseRanges(), MarkFusedRelu(), QuantizeWeights(recipe))(gm)
    if reference is not None and recipe.reconstruction is not None:
        ReconstructRounding(reference, inputs, recipe.reconstruction, checkpoint, progress)(gm)
    if reference is not None and recipe.bias_correction:
        CorrectBias(reference)(gm)
    write_journal(gm, recipe)
    return gm


def _float_model(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a calibrated model without its observers."""
    copied = copy.deepcopy(gm)
    DropObservers()(copied)
    return copied


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    forward: Forward | None = None,
    example_inputs: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Return `convert(calibrate(prepare(model), batches))`; see there.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> quantized = quantize(model, [torch.randn(16, 8)], Recipe.minmax())
    >>> type(quantized.get_submodule("0")).__name__
    'QuantizedLinear'
    """
    prepared = prepare(model, recipe, example_inputs=example_inputs)
    calibrate(prepared, batches, forward=forward, progress=progress)
    return convert(prepared, checkpoint=checkpoint, progress=progress)


def _recipe(recipe: Recipe | str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.named("aciq" if recipe is None else recipe)


def _require_float(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, (Observer, FakeQuantize, QuantizedLayer)):
            state = "prepared" if isinstance(module, Observer) else "converted"
            raise PassError(
                f"prepare: the model is {state} already: {name!r} is a {type(module).__name__}; "
                "give the float model"
            )


def _require_prepared(model: nn.Module, caller: str) -> fx.GraphModule:
    prepared = isinstance(model, fx.GraphModule) and read_journal(model) is not None
    if isinstance(model, fx.GraphModule) and prepared and not _is_converted(model):
        return model
    kind = "a converted model" if prepared else f"a {type(model).__name__}"
    raise PassError(f"{caller}: got {kind}: give what fxquant.prepare(model) returned")


def _is_converted(gm: fx.GraphModule) -> bool:
    return any(isinstance(module, (FakeQuantize, QuantizedLayer)) for module in gm.modules())


def _require_finite(gm: fx.GraphModule, run: Callable[[], Any], number: int) -> None:
    bad = nonfinite_tensors(gm)
    if bad:
        forget_nonfinite(gm)
        first = first_nonfinite(gm, run) or bad[0]
        raise CalibrationError(
            f"batch {number}: NaN or infinity first in the result of {first.name!r}, then in "
            f"{len(bad)} observed tensors. They left the batch out: calibrate goes on with others, "
            "or look at the input and at that call"
        )


def _forward(where: str, model: fx.GraphModule, batch: Any) -> Any:
    arguments = arguments_of(model, batch, where)
    if any(isinstance(module, (Observer, ChannelMean)) for module in model.modules()):
        return model(*arguments)
    keeper = find_keeper(model)
    return keeper(*arguments) if keeper is not None else None


def _arguments(gm: fx.GraphModule, example_inputs: Any) -> tuple[Any, ...]:
    """Return example inputs as positional arguments."""
    if isinstance(example_inputs, dict):
        return positional(gm, example_inputs, "example_inputs")
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    return (example_inputs,)


def _run_examples(gm: fx.GraphModule, example_inputs: Any) -> Any:
    """Run the graph on the examples, note every shape, and return the outputs."""
    with torch.no_grad():
        return ShapeProp(gm).propagate(*_arguments(gm, example_inputs))


def _check_folding(gm: fx.GraphModule, example_inputs: Any, expected: Any) -> None:
    with torch.no_grad():
        actual = gm(*_arguments(gm, example_inputs))
    if not isinstance(actual, Tensor) or not actual.is_floating_point():
        return
    agreement = sqnr(expected, actual)
    _logger.info("folding: outputs agree to %.0f dB on the example inputs", agreement)
    if agreement < _MIN_FOLDING_SQNR:
        raise PassError(
            f"folding changed the outputs on the example inputs: they agree to {agreement:.1f} dB, "
            f"less than {_MIN_FOLDING_SQNR}: please report the model"
        )
