"""The caller's float model in the graphs of a quantized one: captured and folded, not quantized.

Before:  conv = Conv2d(x); bn = BatchNorm2d(conv); return bn       # the caller's model
After:   conv = Conv2d(x); return conv                             # folded: bn
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from fxquant.calling.arguments import Forward
from fxquant.calling.description import described_layer, sizes_of_layer
from fxquant.calling.examples import batch_call, run_examples
from fxquant.calling.loaders import no_batches, require_batches
from fxquant.capture.given_models import require_module, unwrapped
from fxquant.capture.naming import find_regions, target_name
from fxquant.capture.partition import capture
from fxquant.errors import PassError, kind_of
from fxquant.graph.journal import read_recipe
from fxquant.graph.states import require_graphs
from fxquant.modules.own import as_own
from fxquant.numerics.decibels import sqnr
from fxquant.passes.float_passes import float_passes
from fxquant.passes.pipeline import Pipeline
from fxquant.recipe.recipe import Recipe
from fxquant.reporting.running_copies import copy_to_run

_MOST_OFF = 1.0  # dB


def first_of(
    batches: Iterable[Any], model: Any, forward: Forward | None, caller: str
) -> tuple[Any, Iterator[Any]]:
    """Return the first of `batches`, and all of them, the first included.

    Args:
        batches: what is gone through.
        model: what will be called with them.
        forward: as in `fxquant.calibrate`.
        caller: for errors.

    Raises:
        CalibrationError: there is none, or they are no batches.
    """
    require_batches(batches, caller, model, forward)
    iterator = iter(batches)
    for first in iterator:
        return first, itertools.chain([first], iterator)
    raise no_batches(batches, caller)


def graphs_of_both(
    reference: nn.Module, model: nn.Module, batch: Any, forward: Forward | None, caller: str
) -> tuple[nn.Module, nn.Module]:
    """Return copies of two forms of one model to run, the first in the graphs of the second.

    Args:
        reference: a float model, or what `fxquant` made of it.
        model: what `fxquant` made of it.
        batch: what the float model was captured with, or its like.
        forward: as in `fxquant.calibrate`.
        caller: for errors.

    Raises:
        PassError: they are not forms of one model.
    """
    require_graphs(model, caller, "give what prepare, convert, to_qdq or lower made")
    if not isinstance(reference, nn.Module):
        raise PassError(f"{caller}: got {kind_of(reference)}: give two forms of one model")
    copied = copy_to_run(model)
    recipe = read_recipe(copied)
    if recipe is None or read_recipe(reference) is not None:
        formed = copy_to_run(reference)
        read_recipe(formed)
    else:
        formed = _float_form(reference, copied, recipe, batch, forward)
        _require_weights(formed, copied, caller)
    mine, theirs = find_regions(formed), find_regions(copied)
    if not mine or mine.keys() != theirs.keys():
        raise PassError(
            f"{caller}: {type(reference).__name__} has the graphs {_names(mine)}, "
            f"{type(model).__name__} {_names(theirs)}: give two forms of one model"
        )
    _require_sizes(formed, copied, caller)
    return formed, copied


def _require_sizes(reference: nn.Module, model: nn.Module, caller: str) -> None:
    """Raise if layers of one name take or give other numbers of channels in two models."""
    others = dict(reference.named_modules())
    for name, module in model.named_modules():
        mine, theirs = sizes_of_layer(module), sizes_of_layer(others.get(name, nn.Identity()))
        if mine and theirs and mine != theirs:
            raise PassError(
                f"{caller}: {name!r} is {described_layer(others[name])} in the one model, and "
                f"{described_layer(module)} in the other: give two forms of one model"
            )


def _names(graphs: dict[str, Any]) -> str:
    return ", ".join(repr(path) for path in graphs) or "none"


def _float_form(
    reference: nn.Module, model: nn.Module, recipe: Recipe, batch: Any, forward: Forward | None
) -> nn.Module:
    """Return a copy of the caller's model, captured as `model` was, and prepared as it was."""
    form = captured_form(reference, model, batch, forward)
    call = batch_call(reference, batch, forward)
    if call is not None:
        run_examples(form, call)
    for gm in find_regions(form).values():
        Pipeline(*float_passes(recipe))(gm)
    return copy_to_run(form)


def captured_form(
    reference: nn.Module, model: nn.Module, batch: Any, forward: Forward | None
) -> nn.Module:
    """Return the caller's float model in the graphs of `model`, with nothing folded yet."""
    require_module(reference)
    paths = list(find_regions(model))
    return capture(
        reference,
        leaf_modules=list(_leaves(unwrapped(reference), model)),
        regions=None if "" in paths else paths,
        call=batch_call(reference, batch, forward),
    ).model


def _leaves(reference: nn.Module, model: nn.Module) -> Iterator[str]:
    """Yield globs for the submodules that the graphs of `model` call as they are."""
    kinds = {name: type(module) for name, module in reference.named_modules()}
    for gm in find_regions(model).values():
        for node in gm.graph.find_nodes(op="call_module"):
            name, module = target_name(gm, str(node.target)), gm.get_submodule(str(node.target))
            if name and kinds.get(name) is type(module):
                yield name.translate({ord(each): f"[{each}]" for each in "[*?"})


def _require_weights(form: nn.Module, model: nn.Module, caller: str) -> None:
    """Raise if integers of `model` are not the roundings of the weights of `form`."""
    floats = dict(form.named_modules())
    for name, module in model.named_modules():
        figures, rounded = as_own(module).weight_figures(), getattr(module, "weight", None)
        if figures is None or not isinstance(rounded, Tensor):
            continue
        exact = getattr(floats.get(name), "weight", None)
        if exact is None or exact.shape != rounded.shape:
            raise PassError(
                f"{caller}: the float model has no layer {name!r} with a weight "
                f"{tuple(rounded.shape)}: give the model that was quantized, or what prepare made "
                "of it"
            )
        found = sqnr(exact.detach().float(), rounded.float())
        if abs(found - figures.sqnr) > _MOST_OFF:
            raise PassError(
                f"{caller}: the weight of {name!r} in the float model is not what was quantized: "
                f"the integers are {found:.1f} dB from it, and were {figures.sqnr:.1f} dB from "
                "theirs: give the model that was quantized, or what prepare made of it"
            )
