"""Float, prepared, converted, lowered: which a model is, and errors where it should be another."""

from __future__ import annotations

from torch import nn

from fxquant.dynamic import DynamicQuantize
from fxquant.errors import CaptureError, PassError
from fxquant.fakequant import FakeQuantize, QuantizedLayer
from fxquant.int8 import Int8Module
from fxquant.meta import read_recipe
from fxquant.observers import Observer
from fxquant.recipe import Recipe

_CONVERTED = (FakeQuantize, DynamicQuantize, QuantizedLayer)


def require_float(model: nn.Module) -> None:
    """Raise if `model` is no module, or something of ours is in it already."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, module in model.named_modules():
        state = _state_of(module)
        if state is not None:
            raise PassError(
                f"prepare: the model is {state} already: {name!r} is a {type(module).__name__}; "
                "give the float model"
            )


def require_prepared(model: nn.Module, caller: str) -> Recipe:
    """Return the recipe that `model` was prepared with; raise if it was not, or is converted."""
    recipe, states = _recipe_and_states(model)
    if recipe is not None and states <= {"prepared"}:
        return recipe
    kind = "a converted model" if recipe is not None else f"a {type(model).__name__}"
    raise PassError(f"{caller}: got {kind}: give what fxquant.prepare(model) returned")


def require_converted(model: nn.Module, caller: str) -> Recipe:
    """Return the recipe of the fake-quantized `model`; raise if it is anything else."""
    recipe, states = _recipe_and_states(model)
    if recipe is not None and "converted" in states and "lowered" not in states:
        return recipe
    kind = "a prepared model" if recipe is not None else f"a {type(model).__name__}"
    if recipe is not None and "lowered" in states:
        kind = "a model that is lowered already"
    raise PassError(f"{caller}: got {kind}: give what fxquant.convert(prepared) returned")


def _recipe_and_states(model: nn.Module) -> tuple[Recipe | None, set[str]]:
    if not isinstance(model, nn.Module):
        return None, set()
    states = {state for module in model.modules() if (state := _state_of(module)) is not None}
    return read_recipe(model), states


def _state_of(module: nn.Module) -> str | None:
    """Return which state of a model shows in one module of it."""
    if isinstance(module, Observer):
        return "prepared"
    if isinstance(module, Int8Module):
        return "lowered"
    return "converted" if isinstance(module, _CONVERTED) else None
