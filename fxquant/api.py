"""prepare → calibrate → convert: the passes in their order."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Sequence, Sized
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxquant.calibration.counted_call import counted_first_call, is_counted
from fxquant.calibration.first_calls import is_compared
from fxquant.calibration.input_keeper import collect_inputs, find_keeper, require_takes_all
from fxquant.calibration.nonfinite import require_finite
from fxquant.calibration.observed import check_calibrated
from fxquant.calling.arguments import Forward, arguments_of, call_on_batch
from fxquant.calling.description import in_brackets
from fxquant.calling.examples import batch_call, example_call, example_calls
from fxquant.calling.loaders import is_empty, no_batches, require_batches
from fxquant.capture.partition import capture
from fxquant.conversion import converted
from fxquant.errors import CalibrationError, CaptureError, FxquantError
from fxquant.given_passes import Passes
from fxquant.graph.states import require_float, require_prepared
from fxquant.mixed_precision.allocation import require_scipy
from fxquant.modules.own import own_modules
from fxquant.passes.pipeline import AnyPass, as_passes
from fxquant.preparation import prepare_anew, prepared_copy
from fxquant.recipe.given import as_recipe
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.distributed import num_ranks, together
from fxquant.streaming.long_runs import Run, bar
from fxquant.streaming.rank_facts import (
    facts_of_graphs,
    facts_of_model,
    facts_of_recipe,
    require_same,
    take_first_ranks,
)
from fxquant.streaming.said_once import said_once

_logger = logging.getLogger("fxquant")


def prepare(
    model: nn.Module,
    recipe: Recipe | str | None = None,
    *,
    example_inputs: Any = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
    verify: bool = True,
    passes: Iterable[AnyPass] | AnyPass = (),
) -> nn.Module:
    """Return a copy of `model`, batch norms folded and observers in place, ready to calibrate.

    Where the model can be traced whole, the copy is a `GraphModule`. Else it is of the model's own
    type, and its largest traceable submodules are `GraphModule`s (`fxquant.capture.partition`);
    `report` lists them, and what stayed in float.

    A model that is a graph already (`fxquant.trace`, `torch.fx.symbolic_trace`), with passes of
    your own run on it or not, is taken as it is: names of nodes and modules stay, what the nodes'
    `meta` holds too, and what was folded or recorded by passes of fxquant. Layers may be modules or
    functions, whose calls get names of modules. Graphs of ATen operators (`torch.export`) have no
    layers, and are refused.

    Args:
        model: left as it is. The copy is put in eval mode.
        recipe: a `Recipe`, or "aciq" or "minmax" for one at 8/8 bits, or "adaround" for 4/8. None
            means "aciq".
        example_inputs: optional: one batch (a tensor, a tuple of arguments, a dict of keywords, or
            what a loader gives: inputs in front, then labels). Tells ranks, types and sizes where
            the model's Python asks for them, so that more models become one graph, and checks that
            folding left the outputs as they were.
        leaf_modules: types, or globs on names, of submodules to leave whole and in float.
        regions: names of the submodules to trace, instead of as much as can be.
        verify: compare what was captured with `model`, on `example_inputs` and on the first calls,
            and leave in Python what differs: on the example, or, without one, on the first batch of
            `calibrate`. Elsewhere it is a `CaptureError`. Costs a few float forwards.
        passes: of your own, passes or functions of a `GraphModule` (`fxquant.Pipeline`), to run on
            each graph as it was captured, before anything else. They may change what it computes:
            that is then the float model, which is folded, observed and learned from.

    Raises:
        CaptureError: nothing with a layer in it can be traced, or is left to quantize.
        RecipeError: a rule of the recipe matches nothing.
        PassError: the model is prepared or converted already; or, named, one of `passes` leaves a
            graph that does not run, or takes other inputs.
        CalibrationError: the model raises an error on `example_inputs`, which is the cause.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> prepared(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    require_float(model)
    recipe = _possible(recipe, "prepare")
    call = None if example_inputs is None else example_call(model, example_inputs)
    capture_with = partial(capture, leaf_modules=leaf_modules, regions=_listed(regions))
    given = as_passes(passes)
    with said_once():
        return prepared_copy(model, recipe, capture_with, call, verify=verify, passes=given)


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
    for a reconstruction, if there is one, and the model is run on the first alone, which counts its
    multiply-adds.

    Args:
        prepared: what `prepare` returned; in training mode it is put in eval mode.
        batches: any iterable; left as they are. Of a tensor, the model gets a copy; of a tuple or
            list the first items, as many as it needs; of a dict keywords, or, where none of them is
            an argument and the model takes but one, all as that.
        forward: called as `forward(prepared, batch)` instead, for anything else.
        progress: show a bar; None means where there is a terminal or a notebook.

    Raises:
        CalibrationError: no batch, a batch of a type that is not understood, or that the model
            raises an error on, which is the cause; NaN or infinity.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> _ = calibrate(prepared, [torch.tensor([[-1.0, 0.0, 2.0, 3.0]])])
    >>> prepared.observers.input_1.high
    tensor(3.)
    """
    return _calibrate(prepared, batches, forward, progress)


def _calibrate(
    prepared: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None,
    progress: bool | None,
    total: int | None = None,
) -> nn.Module:
    """Return what `calibrate` does; `total` is the number of batches, if they do not tell."""
    require_prepared(prepared, "calibrate")
    require_batches(batches, "calibrate", prepared, forward)
    if prepared.training:
        _logger.warning(
            "calibrate: put in eval mode: in training, dropout changes what is observed"
        )
        prepared.eval()
    number, num_empty, keeper = -1, 0, find_keeper(prepared)
    with said_once(), torch.no_grad(), counted_first_call(prepared):
        for number, batch in enumerate(bar(batches, "calibrating", progress, total=total)):
            num_empty += is_empty(batch)
            run = partial(_forward, prepared, batch, f"batch {number}", forward)
            kept = len(keeper.batches) if keeper is not None else 0
            try:
                run()
            except CaptureError as error:  # what tracing took for granted was wrong
                prepare_anew(prepared, partial(batch_call, batch=batch, forward=forward), error)
                keeper, kept = find_keeper(prepared), 0
                run()
            try:
                require_finite(prepared, run, number)
            except CalibrationError:
                if keeper is not None:
                    keeper.forget_from(kept)
                raise
    if number < 0:
        raise no_batches(batches, "calibrate")
    if num_empty == number + 1:
        raise CalibrationError(
            f"calibrate: no sample in {number + 1} batch{'es' * (number > 0)}, "
            f"{in_brackets(batch)}: see what the loader reads"
        )
    return prepared


def convert(
    prepared: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    passes: Iterable[AnyPass] | AnyPass = (),
) -> nn.Module:
    """Return the fake-quantized model: integer weights, and activations rounded to their grids.

    Under an initialized `torch.distributed` group every rank calls this on what it calibrated with
    its share of the data; statistics are summed, each learns some outputs of each layer, and all
    ranks get the same model. First they compare what they have been given; a rank that fails ends
    all of them.

    Args:
        prepared: what `prepare` returned, calibrated; left as it is.
        batches: what a reconstruction, a tuning of batch norms or an allocation of bits learns
            from, as in `calibrate`; None: what `prepared` was calibrated on. A recipe without these
            needs no data.
        checkpoint: a folder for the layers that a reconstruction has finished. Killed at any moment
            and started again, it goes on with the first unfinished layer, to the same result.
        progress: show a bar; None means where there is a terminal or a notebook.
        passes: of your own, to run behind calibration, before anything else: on each graph as
            `prepare` returned it, with the observers, which hold what they saw. They may change
            weights and calls, and so the float model that roundings and biases are fitted to; each
            tensor to be quantized keeps an observer, and its shape. What they change of the values
            the observers do not see again: let the pass change these too.

    Raises:
        PassError: `prepared` did not come from `prepare`; or, named, one of `passes` leaves a
            graph that does not run, or in which an observer is missing.
        CalibrationError: it has seen no batch, or a layer's data is not finite.
        RankError: ranks differ in recipe, model or versions, or another has failed or ended.
        StorageError: the checkpoint belongs to another model, recipe or data; the disk is full.

    >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> _ = calibrate(prepared, [torch.tensor([[-1.0, 0.0, 2.0, 3.0]])])
    >>> convert(prepared).get_submodule("0").weight_integers.dtype
    torch.int8
    """
    given = as_passes(passes)
    with said_once(), together("convert"):
        recipe = require_prepared(prepared, "convert")
        if batches is not None:
            require_batches(batches, "convert", prepared)
        _compare_ranks("convert", recipe, prepared)
        return _convert(prepared, batches, Run(checkpoint, progress), given)


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    forward: Forward | None = None,
    example_inputs: Any = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    regions: Iterable[str] | None = None,
    verify: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    prepare_passes: Iterable[AnyPass] | AnyPass = (),
    convert_passes: Iterable[AnyPass] | AnyPass = (),
) -> nn.Module:
    """Return `convert(calibrate(prepare(model), batches))`; see there.

    `prepare_passes` are the `passes` of `prepare`, `convert_passes` those of `convert`.

    Without `example_inputs` the first batch is the example: its first eight samples, if `batches`
    can be read again and they will do, else all of it. Where a later batch contradicts what it
    fixed, all begins again without an example.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> quantized = quantize(model, [torch.randn(16, 8)], Recipe.minmax())
    >>> type(quantized.get_submodule("0")).__name__
    'QuantizedLinear'
    """
    in_front, behind = as_passes(prepare_passes), as_passes(convert_passes)
    with said_once(), together("quantize"):
        require_float(model)
        require_batches(batches, "quantize", model, forward)
        recipe = _possible(recipe, "quantize")
        _compare_ranks("quantize", recipe, model)
        prepared = calibrated_copy(
            model,
            batches,
            recipe,
            forward=forward,
            example_inputs=example_inputs,
            leaf_modules=leaf_modules,
            regions=regions,
            verify=verify,
            progress=progress,
            passes=in_front,
        )
        if num_ranks() > 1:
            require_same("quantize, once prepared", facts_of_graphs(prepared))
        return _convert(prepared, None, Run(checkpoint, progress), behind)


def calibrated_copy(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe,
    *,
    forward: Forward | None,
    example_inputs: Any,
    leaf_modules: Sequence[type[nn.Module] | str],
    regions: Iterable[str] | None,
    verify: bool,
    progress: bool | None,
    passes: Passes = (),
) -> nn.Module:
    """Return `calibrate(prepare(model), batches)`, with the first batch for an example.

    A few samples of it, where they do: the batch is then compared in `calibrate`, as the first call
    of another size. Where a later batch contradicts what the first fixed, all begins again without
    an example.
    """
    capture_with = partial(capture, leaf_modules=leaf_modules, regions=_listed(regions))
    prepare_with = partial(prepared_copy, model, recipe, capture_with, verify=verify, passes=passes)
    total = len(batches) if isinstance(batches, Sized) else None
    calibrate_on = partial(_calibrate, forward=forward, progress=progress, total=total)
    iterator = iter(batches)
    first = list(itertools.islice(iterator, 1))
    if not first:
        raise no_batches(batches, "quantize")
    if example_inputs is not None:
        prepared = prepare_with(call=example_call(model, example_inputs))
        return calibrate_on(prepared, itertools.chain(first, iterator))
    if iterator is batches:  # it cannot be read again
        prepared = prepare_with(call=batch_call(model, first[0], forward))
        return calibrate_on(prepared, itertools.chain(first, iterator))
    calls = example_calls(model, first[0], forward)
    for number, call in enumerate(calls):
        try:
            prepared = prepare_with(call=call)
        except CaptureError as error:
            if number == len(calls) - 1:
                raise
            _logger.info("a few samples are no example for the model: %s", error)
            continue
        try:
            return calibrate_on(prepared, itertools.chain(first, iterator))
        except CaptureError as error:
            _logger.info("batches differ, so the first is no example for the model: %s", error)
            iterator = iter(batches)
            first = []
    return calibrate_on(prepare_with(call=None), batches)


def _compare_ranks(name: str, recipe: Recipe, model: nn.Module) -> None:
    """Raise `RankError` unless all ranks have the same of what the result depends on."""
    if num_ranks() > 1:
        from fxquant import __version__  # which is not there yet when this file is imported

        versions = {"fxquant": __version__, "torch": str(torch.__version__)}
        facts = facts_of_recipe(recipe) | facts_of_model(model) | facts_of_graphs(model)
        require_same(name, versions | facts)


def _convert(
    prepared: nn.Module, batches: Iterable[Any] | None, run: Run, passes: Passes
) -> nn.Module:
    recipe = require_prepared(prepared, "convert")
    if num_ranks() > 1:
        check_calibrated(prepared)  # what each has seen by itself
    inputs = collect_inputs(prepared, recipe.data, batches) if recipe.needs_data else []
    try:
        model = converted(prepared, recipe, inputs, run, passes)
    except FxquantError:
        raise
    except Exception:  # of the caller's code, on data of which one batch of a kind was tried
        keeper = find_keeper(prepared) if batches is None else None
        require_takes_all(prepared, inputs if keeper is None else keeper.kept.arguments)
        raise
    take_first_ranks(model)
    return model


def _possible(recipe: Recipe | str | None, caller: str) -> Recipe:
    """Return the recipe that is meant, if all that it needs is installed: before anything runs."""
    given = as_recipe(recipe)
    if given.budget is not None:
        require_scipy(f"{caller}: the recipe has a budget")
    return given


def _listed(names: Iterable[str] | None) -> list[str] | None:
    if isinstance(names, str):
        raise CaptureError(f"regions={names!r}: give a list of names: [{names!r}]")
    return None if names is None else list(names)


def _forward(model: nn.Module, batch: Any, where: str, forward: Forward | None) -> Any:
    keeper = find_keeper(model)
    observed = any(each.watches and each is not keeper for _, each in own_modules(model))
    is_noted = not isinstance(model, fx.GraphModule)  # regions note what is called
    if forward is not None or observed or is_noted or is_compared(model) or not is_counted(model):
        return call_on_batch(model, batch, where, forward)
    return keeper(*arguments_of(model, batch, where)) if keeper is not None else None
