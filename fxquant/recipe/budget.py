"""What mixed precision chooses among, and within which limits: pure data, checked when it is made.

An `Option` is one width for a layer's weights, or for activations, with what it costs. A `Budget`
limits what all chosen options may cost together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxquant.errors import RecipeError
from fxquant.recipe.checks import ACTIVATION_BITS, WEIGHT_BITS, is_number, known_fields
from fxquant.recipe.shown import short_repr
from fxquant.stored_names import stored_as

_LIMITS = ("max_bytes", "average_bits", "max_bit_operations", "max_latency")


@stored_as("Budget")
@known_fields
@dataclass(frozen=True, kw_only=True, repr=False)
class Budget:
    """Limits for all quantized layers together, and the widths to choose from.

    At least one limit is given; several hold at once.

    >>> Budget(average_bits=3.5).weight_bits
    (2, 3, 4, 5, 6, 8)
    >>> Budget(max_bytes=0)
    Traceback (most recent call last):
    fxquant.errors.RecipeError: Budget: max_bytes=0: give a positive number
    """

    max_bytes: int | None = None
    """Of the packed integer weights; scales, biases and what stays in float come on top."""
    average_bits: float | None = None
    """Mean bits of a weight."""
    max_bit_operations: float | None = None
    """Σ multiply-accumulates · bits of the weight · bits of the activation, for one sample; an
    activation in float has 32."""
    max_latency: float | None = None
    """Σ of `latency` over the layers, in its unit."""
    max_drop: float | None = None
    """Of the decisions (the largest output), how many percent may differ from the float network's
    on the calibration data: `Recipe.mixed` looks for the fewest bits that keep to it."""
    latency: Mapping[str, Mapping[int, float]] = field(default_factory=dict, hash=False)
    """What a layer takes at each width of its weights: {name: {bits: seconds}}."""
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    """The widths to choose from for weights."""
    activation_bits: tuple[int, ...] | None = None
    """The widths to choose from for activations; None: the one that the recipe says."""

    def __post_init__(self) -> None:
        for name in _LIMITS:
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                raise RecipeError(f"Budget: {name}={value!r}: give a positive number")
        drop = self.max_drop
        if drop is not None and not (is_number(drop) and 0 <= drop < 100):
            raise RecipeError(f"Budget: max_drop={drop!r}: give a percentage below 100")
        if not self.limits and self.max_drop is None:
            names = ", ".join((*_LIMITS, "max_drop"))
            raise RecipeError(f"Budget: no limit: give at least one of {names}")
        _set_widths(self, "weight_bits", WEIGHT_BITS)
        if self.activation_bits is not None:
            _set_widths(self, "activation_bits", ACTIVATION_BITS)
        if not _is_table(self.latency):
            what = "give {name: {bits: seconds}}, as in {'fc': {4: 0.001}}"
            raise RecipeError(f"Budget: latency={self.latency!r}: {what}")
        if bool(self.latency) != (self.max_latency is not None):
            given, missing = (
                ("latency", "max_latency") if self.latency else ("max_latency", "latency")
            )
            raise RecipeError(f"Budget: {given} without {missing}: give both or neither")
        own = {name: dict(seconds) for name, seconds in self.latency.items()}
        object.__setattr__(self, "latency", own)
        for name, seconds in own.items():
            for bits, value in seconds.items():
                where = f"Budget: latency[{name!r}][{bits!r}]={value!r}"
                if not _is_positive(value):
                    raise RecipeError(f"{where}: give a positive number")

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are given, by field."""
        values = {name: getattr(self, name) for name in _LIMITS}
        return {name: value for name, value in values.items() if value is not None}


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0


def _is_table(latency: object) -> bool:
    """Say whether `latency` has the form {name: {bits: …}}."""
    if not isinstance(latency, Mapping):
        return False
    names = all(isinstance(name, str) for name in latency)
    return names and all(
        isinstance(seconds, Mapping) and all(bits in WEIGHT_BITS for bits in seconds)
        for seconds in latency.values()
    )


def _set_widths(budget: Budget, name: str, choices: tuple[int, ...] | range) -> None:
    """Put a field's widths in order, each once; raise if one of them does not exist."""
    given = getattr(budget, name)
    widths = tuple(given) if isinstance(given, (tuple, list, range, set, frozenset)) else ()
    if not widths or any(type(bits) is not int or bits not in choices for bits in widths):
        what = "2 to 8, or 16" if 16 in choices else "2 to 8"
        raise RecipeError(f"Budget: {name}={given!r}: give a tuple of widths, each {what}")
    object.__setattr__(budget, name, tuple(sorted(set(widths))))
