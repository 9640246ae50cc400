"""Overrides of a recipe for single calls: pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.checks import ACTIVATION_BITS, WEIGHT_BITS, check_bits, known_fields
from fxquant.recipe.shown import as_code, short_repr
from fxquant.recipe.spec import WEIGHTS, CallSpec, TensorSpec
from fxquant.stored_names import stored_as

Inherit = Literal["inherit"]


@stored_as("Rule")
@known_fields
@dataclass(frozen=True, repr=False)
class Rule:
    """An override for the calls whose qualified name or module type matches.

    `match` is a glob on the name (`"layer4.*"`, `"fc"`) or a module type (`nn.Linear`). A number in
    place of a spec changes the bits alone; `None` leaves that side in float. Later rules win.

    >>> print(Rule("layer4.*", weights=4))
    Rule('layer4.*', weights=4)
    """

    match: str | type[nn.Module]
    """A glob on qualified names (`"layer4.*"`, `"fc"`), or a module type (`nn.Linear`)."""
    skip: bool = False
    """Leave both sides in float."""
    weights: TensorSpec | int | Inherit | None = "inherit"
    """A `TensorSpec`, a number of bits, None for float, or "inherit": as without the rule."""
    activations: TensorSpec | int | Inherit | None = "inherit"
    """As `weights`, for what the call reads."""

    def __post_init__(self) -> None:
        is_type = isinstance(self.match, type) and issubclass(self.match, nn.Module)
        shown = f"Rule({as_code(self.match)})"
        if not (is_type or (isinstance(self.match, str) and self.match)):
            several = "; for several a Rule each" if isinstance(self.match, (list, tuple)) else ""
            raise RecipeError(
                f"Rule({self.match!r}): give a glob on names or a module type{several}"
            )
        if type(self.skip) is not bool:
            bits = f"; for bits: weights={self.skip}" if isinstance(self.skip, int) else ""
            raise RecipeError(f"{shown}: skip={self.skip!r}: choose True or False{bits}")
        for side, widths in (("weights", WEIGHT_BITS), ("activations", ACTIVATION_BITS)):
            value = getattr(self, side)
            if isinstance(value, int):
                check_bits(f"{shown}: {side}", value, widths)
            elif not isinstance(value, TensorSpec | None) and value != "inherit":
                what = "give a TensorSpec, a number of bits, None or 'inherit'"
                raise RecipeError(f"{shown}: {side}={value!r}: {what}")

    def __repr__(self) -> str:
        return short_repr(self)

    def matches(self, name: str, module: nn.Module | None) -> bool:
        """Say whether the rule covers the call `name`, which runs `module` (None: a function)."""
        if isinstance(self.match, str):
            return fnmatchcase(name, self.match)
        return isinstance(module, self.match)


def apply_rule(rule: Rule, spec: CallSpec, own: CallSpec) -> CallSpec:
    """Return `spec` as changed by the rule; a number brings back the recipe's `own` spec."""
    if rule.skip:
        return CallSpec(None, None)
    return CallSpec(
        _override(spec.weights, rule.weights, own.weights or WEIGHTS),
        _override(spec.activations, rule.activations, own.activations),
    )


def _override(
    spec: TensorSpec | None, by: TensorSpec | int | Inherit | None, own: TensorSpec | None
) -> TensorSpec | None:
    if by == "inherit":
        return spec
    if isinstance(by, int):
        return replace(spec or own or TensorSpec(), bits=by)
    return by
