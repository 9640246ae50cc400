"""Float, prepared, converted, lowered: which a model is, and errors where it should be another."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxquant.capture.given_models import require_module
from fxquant.capture.naming import find_regions
from fxquant.errors import PassError, kind_of
from fxquant.graph.journal import read_recipe
from fxquant.modules.own import Stage, own_modules
from fxquant.recipe.recipe import Recipe


def require_graphs(model: Any, caller: str, remedy: str) -> dict[str, fx.GraphModule]:
    """Return the graphs of `model` by name; raise if it has none."""
    graphs = find_regions(model) if isinstance(model, nn.Module) else {}
    if not graphs:
        raise PassError(f"{caller}: got {kind_of(model)}, which has no graph: {remedy}")
    return graphs


def require_float(model: nn.Module) -> None:
    """Raise if `model` is no module, or something of ours is in it already."""
    require_module(model)
    for name, module in own_modules(model):
        if module.stage is not None:
            raise PassError(
                f"prepare: the model is {module.stage} already: {name!r} is {kind_of(module)}; "
                "give the float model"
            )


def require_prepared(model: nn.Module, caller: str) -> Recipe:
    """Return the recipe that `model` was prepared with; raise if it was not, or is converted."""
    recipe, states = _recipe_and_states(model)
    if recipe is not None and states <= {"prepared"}:
        return recipe
    kind = "a converted model" if recipe is not None else kind_of(model)
    raise PassError(f"{caller}: got {kind}: give what fxquant.prepare(model) returned")


def require_converted(model: nn.Module, caller: str) -> Recipe:
    """Return the recipe of the fake-quantized `model`; raise if it is anything else."""
    recipe, states = _recipe_and_states(model)
    if recipe is not None and "converted" in states and "lowered" not in states:
        return recipe
    kind = "a prepared model" if recipe is not None else kind_of(model)
    if recipe is not None and "lowered" in states:
        kind = "a model that is lowered already"
    raise PassError(f"{caller}: got {kind}: give what fxquant.convert(prepared) returned")


def recipe_of(model: nn.Module) -> Recipe:
    """Return the recipe that a prepared, converted, lowered or loaded model was made with.

    Of a recipe with a budget, once converted, the one with the bits that were allocated.

    Raises:
        PassError: `model` is none of these.

    >>> from fxquant.api import prepare
    >>> recipe_of(prepare(nn.Sequential(nn.Linear(4, 2)), Recipe.aciq(weight_bits=4)))
    Recipe.aciq(weight_bits=4)
    """
    recipe, _ = _recipe_and_states(model)
    if recipe is None:
        raise PassError(
            f"recipe_of: got a {type(model).__name__}: give what prepare, convert, lower or load "
            "returned"
        )
    return recipe


def _recipe_and_states(model: nn.Module) -> tuple[Recipe | None, set[Stage]]:
    if not isinstance(model, nn.Module):
        return None, set()
    stages = {module.stage for _, module in own_modules(model)}
    return read_recipe(model), {stage for stage in stages if stage is not None}
