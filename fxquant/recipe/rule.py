"""Overrides of a recipe for single calls: pure data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.spec import WEIGHTS, CallSpec, TensorSpec
from fxquant.stored_names import stored_as

Inherit = Literal["inherit"]


@stored_as("Rule")
@dataclass(frozen=True)
class Rule:
    """An override for the calls whose qualified name or module type matches.

    `match` is a glob on the name (`"layer4.*"`, `"fc"`) or a module type (`nn.Linear`). A number in
    place of a spec changes the bits alone; `None` leaves that side in float. Later rules win.

    >>> Rule("layer4.*", weights=4).match
    'layer4.*'
    """

    match: str | type[nn.Module]
    skip: bool = False
    weights: TensorSpec | int | Inherit | None = "inherit"
    activations: TensorSpec | int | Inherit | None = "inherit"

    def __post_init__(self) -> None:
        is_type = isinstance(self.match, type) and issubclass(self.match, nn.Module)
        if not (is_type or (isinstance(self.match, str) and self.match)):
            raise RecipeError(f"Rule({self.match!r}): give a glob on names or a module type")
        for side in ("weights", "activations"):
            _override(None, getattr(self, side), None, f"Rule({self.match!r}).{side}")

    def matches(self, name: str, module: nn.Module | None) -> bool:
        """Say whether the rule covers the call `name`, which runs `module` (None: a function)."""
        if isinstance(self.match, str):
            return fnmatchcase(name, self.match)
        return isinstance(module, self.match)


def apply_rule(rule: Rule, spec: CallSpec, own: CallSpec) -> CallSpec:
    """Return `spec` as changed by the rule; a number brings back the recipe's `own` spec."""
    if rule.skip:
        return CallSpec(None, None)
    where = f"Rule({rule.match!r})"
    return CallSpec(
        _override(spec.weights, rule.weights, own.weights or WEIGHTS, f"{where}.weights"),
        _override(spec.activations, rule.activations, own.activations, f"{where}.activations"),
    )


def _override(
    spec: TensorSpec | None,
    by: TensorSpec | int | Inherit | None,
    own: TensorSpec | None,
    where: str,
) -> TensorSpec | None:
    if by == "inherit":
        return spec
    if by is None or isinstance(by, TensorSpec):
        return by
    if isinstance(by, int):
        return replace(spec or own or TensorSpec(), bits=by)
    raise RecipeError(f"{where}={by!r}: give a TensorSpec, a number of bits, None or 'inherit'")
