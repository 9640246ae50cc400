"""From a recipe back to the call that makes it: of the constructors, the one that says least.

Recipe(weights=TensorSpec(bits=4, …), …, rules=(Rule('fc', skip=True),))
→  Recipe.adaround(weight_bits=4, skip=['fc'])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from fxquant.errors import RecipeError
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import changed_fields, is_same, keywords
from fxquant.recipe.target import TARGETS

_STARTS = ("minmax", "aciq", "adaround", "mixed")
_SHOWN_BITS = range(2, 8)  # 8 are usual; others are shown where a constructor has them by itself
_NOTHING = object()
_BASIC = ("weight_bits", "activation_bits", "skip", "rules", "target")


def nearest_call(recipe: Any) -> str:
    """Return the shortest call of a constructor, or of `Recipe` itself, that makes `recipe`."""
    kind = type(recipe)
    calls = []
    for start in _STARTS:
        options = _options_for(recipe, getattr(kind, start))
        if options is not None:
            calls.append((f"{kind.__name__}.{start}", options))
    calls = calls or [(kind.__name__, changed_fields(recipe))]
    texts = [(len(options), _written(name, options)) for name, options in calls]
    return min(texts, key=lambda each: (each[0], len(each[1])))[1]


def _written(name: str, options: dict[str, Any]) -> str:
    """Return a call; the rules come last, for they may be long."""
    shown = dict(options)
    if "target" in shown and TARGETS.get(shown["target"].name) == shown["target"]:
        shown["target"] = shown["target"].name
    for listed in ("rules", "skip"):
        if listed in shown:
            shown[listed] = list(shown.pop(listed))
    return f"{name}({', '.join(keywords(shown))})"


def options_of(recipe: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return what `recipe` has of a constructor's options; of a side in float only that it is."""
    names = list(names)
    found: dict[str, Any] = {"weight_bits": None, "activation_bits": None}
    for prefix, spec in (("weight", recipe.weights), ("activation", recipe.activations)):
        if spec is not None:
            found |= {f"{prefix}_{each.name}": getattr(spec, each.name) for each in fields(spec)}
    found |= {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    found["rules"], found["skip"] = _without_skips(recipe.rules)
    for part, mark in (("reconstruction", "steps"), ("budget", "average_bits")):
        value = getattr(recipe, part)
        if value is not None and mark in names:
            own = [each.name for each in fields(value) if each.name != "activation_bits"]
            found |= {name: getattr(value, name) for name in own}
            del found[part]
    return {name: found[name] for name in names if name in found}


def _without_skips(rules: tuple[Rule, ...]) -> tuple[tuple[Rule, ...], tuple[Any, ...]]:
    """Return the rules up to the last that does more than skip, and what those behind it skip."""
    first = len(rules)
    while first and rules[first - 1] == Rule(rules[first - 1].match, skip=True):
        first -= 1
    return rules[:first], tuple(rule.match for rule in rules[first:])


def _options_for(recipe: Any, start: Callable[..., Any]) -> dict[str, Any] | None:
    """Return what to call `start` with to get `recipe`, and no more; None: it cannot be."""
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(start).parameters.items()
    }
    own = options_of(recipe, defaults)
    limits = changed_fields(recipe.budget).keys() if recipe.budget is not None else set()
    basic = {name: own[name] for name in (*_BASIC, *limits) if name in own}
    try:
        usual = options_of(start(**basic), defaults)
    except RecipeError:
        return None
    given = {
        name: value
        for name, value in own.items()
        if not is_same(value, defaults[name] if name in basic else usual.get(name, _NOTHING))
    }
    if not _makes(start, given, recipe):
        return None
    # What others of them bring along is left out; `blocks` decides most, and is the last to go.
    for name in sorted(given, key="blocks".__eq__):
        fewer = {other: value for other, value in given.items() if other != name}
        if _makes(start, fewer, recipe):
            given = fewer
    bits = own["weight_bits"]
    return {"weight_bits": bits, **given} if bits in _SHOWN_BITS else given


def _makes(start: Callable[..., Any], options: dict[str, Any], recipe: Any) -> bool:
    try:
        return bool(start(**options) == recipe)
    except RecipeError:
        return False
