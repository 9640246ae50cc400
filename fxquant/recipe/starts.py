"""What `Recipe.minmax(...)`, `.aciq(...)`, `.adaround(...)` and `.mixed(...)` make of options.

Each returns the arguments of `Recipe` itself. An option `weight_…` or `activation_…` is a field of
that side's `TensorSpec`; others are fields of `Reconstruction`, of `Budget`, or of `Recipe`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, TypeAlias

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.budget import Budget
from fxquant.recipe.checks import ACTIVATION_BITS, WEIGHT_BITS, check_bits
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import WEIGHTS, TensorSpec

Match: TypeAlias = str | type[nn.Module]
_FEW_BITS = 6
FREE_BLOCKS: dict[str, Any] = {
    "blocks": True, "method": "adaquant", "steps": 300, "activation_learning_rate": 3e-3
}  # fmt: skip
"""What `Recipe.adaround` takes by itself where activations have few bits."""
_DECIDES_BLOCKS = {"blocks", "method", "parallel", "reconstruction", "budget"}
_OF_RECONSTRUCTION = frozenset(each.name for each in fields(Reconstruction))
_OF_BUDGET = frozenset(each.name for each in fields(Budget))
_OF_SPECS = frozenset(each.name for each in fields(TensorSpec))


def rounded_to_nearest(
    weight_bits: int | None, activation_bits: int | None, activations: TensorSpec, given: Any
) -> dict[str, Any]:
    """Return what `Recipe.minmax`, and by other `activations` `Recipe.aciq`, hand to `Recipe`."""
    check_bits("weight_bits", weight_bits, WEIGHT_BITS, none="for activations only")
    weights = None if weight_bits is None else replace(WEIGHTS, bits=weight_bits)
    return _arguments(weights, _with_bits(activations, activation_bits), given)


def learned(weight_bits: int, activation_bits: int | None, given: Any) -> dict[str, Any]:
    """Return what `Recipe.adaround` hands to `Recipe`."""
    check_bits("weight_bits", weight_bits, WEIGHT_BITS)
    # Learning makes up for errors of rounding, not for those of clipping, so these count double
    # (benchmarks/rounding/adaround_options.py).
    weights = TensorSpec(
        bits=weight_bits, symmetric=True, per_channel=True, range="mse", clip_weight=2.0
    )
    activations = _with_bits(TensorSpec(range="mse"), activation_bits)
    if activations is not None and activations.bits < _FEW_BITS:
        given.setdefault("end_bits", 8)
        if not given.keys() & _DECIDES_BLOCKS:
            given |= {name: given.get(name, value) for name, value in FREE_BLOCKS.items()}
    _gather(given, "reconstruction", Reconstruction, _OF_RECONSTRUCTION)
    return _arguments(weights, activations, given)


def within_budget(activation_bits: int | None, given: Any) -> dict[str, Any]:
    """Return what `Recipe.mixed` hands to `Recipe`."""
    if given.get("budget") is None:
        given.pop("budget", None)
    _gather(given, "budget", Budget, _OF_BUDGET)
    return learned(4, activation_bits, given)


def _with_bits(activations: TensorSpec, bits: int | None) -> TensorSpec | None:
    check_bits("activation_bits", bits, ACTIVATION_BITS, none="for weights only")
    return None if bits is None else replace(activations, bits=bits)


def _gather(
    given: dict[str, Any],
    name: str,
    kind: type[Reconstruction | Budget],
    options: frozenset[str],
) -> None:
    """Put the options of `kind` into one, as `name`, if it is not given whole."""
    chosen = {option: given.pop(option) for option in sorted(options & given.keys())}
    if chosen and name in given:
        raise RecipeError(
            f"{name}={given[name]!r} beside {', '.join(chosen)}: give these to the {kind.__name__}"
        )
    if name not in given:
        given[name] = kind(**chosen)


def _arguments(
    weights: TensorSpec | None, activations: TensorSpec | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `Recipe`: the specs with their options, `skip` behind the rules."""
    skips = [Rule(match, skip=True) for match in _listed("skip", given.pop("skip"), (str, type))]
    rules = (*as_rules(given.pop("rules")), *skips)
    sides = {
        "weights": _changed(weights, "weight", given),
        "activations": _changed(activations, "activation", given),
    }
    return {**sides, "rules": rules, **given}


def _changed(spec: TensorSpec | None, side: str, given: dict[str, Any]) -> TensorSpec | None:
    """Return `spec` with the options of that side, which leave `given`."""
    names = {f"{side}_{field}": field for field in _OF_SPECS}
    chosen = {name: given.pop(name) for name in sorted(names.keys() & given.keys())}
    if spec is None:
        if chosen:
            raise RecipeError(f"{', '.join(chosen)}: {side}s stay in float ({side}_bits=None)")
        return None
    try:
        return replace(spec, **{names[name]: value for name, value in chosen.items()})
    except RecipeError as error:
        raise RecipeError(f"{side}_{error}") from None


def as_rules(rules: Any) -> tuple[Rule, ...]:
    """Return the rules that were given, one or several, checked."""
    listed = _listed("rules", rules, (Rule, str, type, dict))
    for rule in listed:
        if not isinstance(rule, Rule):
            match = as_code(rule) if isinstance(rule, (str, type)) else "'fc'"
            raise RecipeError(
                f"rules: {as_code(rule)} is a {type(rule).__name__}, not a Rule: "
                f"rules=[Rule({match}, weights=8)]"
            )
    return listed


def _listed(name: str, given: Any, single: tuple[type, ...]) -> tuple[Any, ...]:
    """Return what was given as a tuple: the one, if it is of a type that stands for one."""
    if isinstance(given, single):
        return (given,)
    if not isinstance(given, Iterable):
        raise RecipeError(f"{name}={given!r}: give a list")
    return tuple(given)
