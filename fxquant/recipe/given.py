"""What callers give where a recipe goes, and what they may have meant."""

from __future__ import annotations

import inspect
from typing import Any

from fxquant.errors import RecipeError
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import TensorSpec
from fxquant.recipe.target import Target


def as_recipe(given: Any) -> Recipe:
    """Return the recipe that a caller gave, by itself or by name; None: "aciq".

    Raises:
        RecipeError: it is something else; the message says how to make a recipe of it.

    >>> as_recipe(Recipe.aciq)
    Traceback (most recent call last):
    fxquant.errors.RecipeError: recipe is the method Recipe.aciq itself: call it: Recipe.aciq()
    """
    if isinstance(given, Recipe):
        return given
    if given is None:
        return Recipe.aciq()
    if isinstance(given, str):
        return Recipe.named(given)
    raise RecipeError(f"recipe is {_what(given)}")


def _what(given: Any) -> str:
    """Return what was given, and how to make a recipe of it."""
    if given is Recipe:
        return "the class Recipe itself: give one, as Recipe.aciq()"
    if inspect.ismethod(given) and given.__self__ is Recipe:
        limit = "max_bytes=200_000" if given.__name__ == "mixed" else ""
        name = f"Recipe.{given.__name__}"
        return f"the method {name} itself: call it: {name}({limit})"
    if type(given) is int:
        return f"a number of bits: say of what: Recipe.aciq(weight_bits={given})"
    if isinstance(given, dict):
        options = ", ".join(f"{name}={as_code(value)}" for name, value in given.items())
        return f"a dict: give its items as options: Recipe.aciq({options})"
    are_rules = isinstance(given, (list, tuple)) and all(isinstance(each, Rule) for each in given)
    if are_rules and given:
        return f"a list of Rules: give it to one: Recipe.aciq(rules={as_code(list(given))})"
    kind = type(given)
    own = _article(kind.__name__)
    if inspect.isroutine(given):
        return f"{own}: give the Recipe that it returns"
    if kind in _CALLS:
        return f"{own}: give it to one: {_CALLS[kind].format(as_code(given))}"
    return f"{own}: give a Recipe, as Recipe.aciq(), or its name, as 'aciq'"


_CALLS: dict[type, str] = {
    Rule: "Recipe.aciq(rules=[{}])",
    TensorSpec: "Recipe(weights={0}) or Recipe(activations={0})",
    Budget: "Recipe.mixed(budget={})",
    Reconstruction: "Recipe.adaround(reconstruction={})",
    Target: "Recipe.aciq(target={})",
}


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
