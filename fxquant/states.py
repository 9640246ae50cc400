"""Float, prepared, converted: which of them a model is, and errors where it should be another."""

from __future__ import annotations

from torch import nn

from fxquant.dynamic import DynamicQuantize
from fxquant.errors import CaptureError, PassError
from fxquant.fakequant import FakeQuantize, QuantizedLayer
from fxquant.meta import read_recipe
from fxquant.observers import Observer
from fxquant.recipe import Recipe

_CONVERTED = (FakeQuantize, DynamicQuantize, QuantizedLayer)


def require_float(model: nn.Module) -> None:
    """Raise if `model` is no module, or something of ours is in it already."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, (Observer, *_CONVERTED)):
            state = "prepared" if isinstance(module, Observer) else "converted"
            raise PassError(
                f"prepare: the model is {state} already: {name!r} is a {type(module).__name__}; "
                "give the float model"
            )


def require_prepared(model: nn.Module, caller: str) -> Recipe:
    """Return the recipe that `model` was prepared with; raise if it was not, or is converted."""
    recipe = read_recipe(model) if isinstance(model, nn.Module) else None
    if recipe is not None and not _is_converted(model):
        return recipe
    kind = "a converted model" if recipe is not None else f"a {type(model).__name__}"
    raise PassError(f"{caller}: got {kind}: give what fxquant.prepare(model) returned")


def _is_converted(model: nn.Module) -> bool:
    return any(isinstance(module, _CONVERTED) for module in model.modules())
