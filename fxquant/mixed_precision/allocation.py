"""Which layer gets how many bits: the choice of least loss within a budget, by integer programming.

    minimize    Σ loss(l, b) · x(l, b)          x(l, b) = 1 where choice l takes b bits, else 0
    subject to  Σ_b x(l, b) = 1                 for each choice l
                Σ cost(l, b) · x(l, b) ≤ limit  for each limit of the budget

(Hubara et al., "Improving post training neural quantization: layer-wise calibration and integer
programming", 2020.) Losses of layers add up to first order: `fxquant.mixed_precision.sensitivity`.

The bit operations of a layer are a product, of the bits of its weight and of its input. They are
linear in y(w, a) = x(l, w) · x(l', a), which 0 ≤ y, Σ_a y(w, a) = x(l, w), Σ_w y(w, a) = x(l', a)
say in full, since all x are 0 or 1.
"""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table
from fxquant.errors import RecipeError
from fxquant.mixed_precision.options import Option, Side
from fxquant.mixed_precision.program import Program
from fxquant.recipe.budget import Budget
from fxquant.recipe.rule import Rule

_FLOAT_BITS = 32
_UNITS = {
    "max_bytes": "{:,.0f} bytes",
    "average_bits": "{:.4g} bits a weight",
    "max_bit_operations": "{:.4g} bit operations",
    "max_latency": "{:.4g} seconds",
}


@dataclass(frozen=True, repr=False)
class Allocation(Listed):
    """The chosen widths: an option for each layer's weights, and for each group of activations."""

    chosen: tuple[Option, ...]

    @property
    def bits(self) -> dict[str, dict[Side, int]]:
        """The bits of each side, by call."""
        return _by_call(self.chosen)

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules that ask for these widths, one a call, to put behind a recipe's own.

        >>> chosen = Option(name="blocks[0]", side="weights", bits=3, loss=0.1, num_weights=8)
        >>> Allocation((chosen,)).rules()[0].match
        'blocks[[]0]'
        """
        return rules_of(_by_call(option for option in self.chosen if not option.fixed))

    @property
    def loss(self) -> float:
        """Σ of the chosen options' losses."""
        return sum(option.loss for option in self.chosen)

    @property
    def bytes(self) -> int:
        """What the integers of all weights take where they are stored packed."""
        return sum(option.bytes for option in self.chosen)

    @property
    def average_bits(self) -> float:
        """Mean bits of a weight."""
        num_weights = sum(option.num_weights for option in self.chosen)
        return sum(option.num_weights * option.bits for option in self.chosen) / max(num_weights, 1)

    @property
    def bit_operations(self) -> int:
        """Σ multiply-accumulates · bits of the weight · bits of the input, for one sample."""
        bits = self.bits
        return sum(
            option.multiply_accumulates
            * option.bits
            * bits[option.name].get("activations", _FLOAT_BITS)
            for option in self.chosen
            if option.side == "weights"
        )

    def row_field(self) -> str:
        """Return the name of the field of the options."""
        return "chosen"

    def heads(self) -> list[str]:
        """Return what all of them take, and lose."""
        return [
            f"{self.average_bits:.4g} bits a weight, {self.bytes:,} bytes, "
            f"{self.bit_operations:.4g} bit operations a sample, loss {self.loss:.4g}"
        ]

    def badness(self) -> Sequence[float | None]:
        """Return each option's loss."""
        return [option.loss for option in self.chosen]

    def tables(self) -> list[Table]:
        """Return a row for each option that is chosen."""
        rows = []
        for option in self.chosen:
            also = [name for name in option.readers if name != option.name]
            rows.append(
                (
                    option.name,
                    option.bits if option.side == "weights" else None,
                    option.bits if option.side == "activations" else None,
                    100 * option.loss / (self.loss or 1.0),
                    option.bytes or None,
                    ", ".join(also) or None,
                )
            )
        return [Table(_COLUMNS, tuple(rows))]


_COLUMNS = (
    Column("name", "call", folds=True),
    Column("weights", "weights"),
    Column("activations", "activations"),
    Column("share", "% of loss", "{:.1f}", is_bar=True),
    Column("bytes", "bytes", "{:,}"),
    Column("also", "and those of", folds=True),
)


def _by_call(options: Iterable[Option]) -> dict[str, dict[Side, int]]:
    bits: dict[str, dict[Side, int]] = {}
    for option in options:
        for name in option.readers or (option.name,):
            bits.setdefault(name, {})[option.side] = option.bits
    return bits


def rules_of(bits: Mapping[str, Mapping[Side, int | None]]) -> tuple[Rule, ...]:
    """Return a rule for each call, which matches it alone; of sides that are not named it inherits.

    >>> [rule.match for rule in rules_of({"blocks[0]": {"weights": 8}})]
    ['blocks[[]0]']
    """
    return tuple(
        Rule(
            glob.escape(name),
            weights=sides.get("weights", "inherit"),
            activations=sides.get("activations", "inherit"),
        )
        for name, sides in bits.items()
    )


def allocate(options: Iterable[Option], budget: Budget) -> Allocation:
    """Return the widths of least loss within `budget`.

    Nothing that the limits allow has a loss that is smaller by more than 1e-7 of it.

    Args:
        options: from `fxquant.mixed_precision.sensitivity.measure_sensitivities`; those of widths
            that `budget` does not name are left out, unless they are fixed.
        budget: the limits.

    Raises:
        RecipeError: no choice is within the limits; scipy is missing: `pip install fxquant[mixed]`.

    >>> options = [
    ...     Option(name=name, side="weights", bits=bits, loss=loss, num_weights=100)
    ...     for name, losses in {"a": (9.0, 1.0), "b": (2.0, 1.5)}.items()
    ...     for bits, loss in zip((2, 4), losses)
    ... ]
    >>> allocate(options, Budget(average_bits=3)).bits
    {'a': {'weights': 4}, 'b': {'weights': 2}}
    """
    require_scipy("allocate")
    program = Program(_choices(options, budget), budget)
    found = program.solve(program.losses(), program.limits)
    if found is None:
        raise RecipeError(_why_impossible(program))
    return Allocation(program.chosen(found))


def require_scipy(where: str) -> None:
    """Raise `RecipeError` if scipy is missing, which finds the allocation within a budget."""
    if importlib.util.find_spec("scipy") is None:
        raise RecipeError(f"{where}: scipy is not installed: pip install fxquant[mixed]")


def _choices(options: Iterable[Option], budget: Budget) -> list[list[Option]]:
    """Return the options that the budget admits, choice by choice."""
    measured: dict[tuple[str, Side], list[Option]] = {}
    for option in options:
        measured.setdefault((option.name, option.side), []).append(option)
    if not measured:
        raise RecipeError("allocate: `options` is empty: give what measure_sensitivities returned")
    choices = []
    for (name, side), known in measured.items():
        field = "weight_bits" if side == "weights" else "activation_bits"
        widths = getattr(budget, field)
        admitted = [each for each in known if each.fixed or widths is None or each.bits in widths]
        if not admitted:
            found = ", ".join(str(option.bits) for option in known)
            raise RecipeError(
                f"allocate: {field}={widths}: of {name!r} only {found} bits were measured"
            )
        choices.append(admitted)
    return choices


def _why_impossible(program: Program) -> str:
    """Return which limit cannot be met, alone or with those before it, and what it needs."""
    limits = program.limits
    attempts = [(limit, limits[:0]) for limit in limits]
    attempts += [(limit, limits[:number]) for number, limit in enumerate(limits)]
    for limit, others in attempts:
        least = program.solve(limit.costs, others)
        if least is not None and limit.is_exceeded(least):
            within = f" within {' and '.join(other.name for other in others)}" if others else ""
            shown = _UNITS[limit.name].format(limit.total(least) / limit.unit)
            return (
                f"allocate: {limit.name}={limit.given}: the least that any allocation needs{within}"
                f" is {shown}, {_widths(program.chosen(least))}: raise the limit, or let the "
                "budget name narrower widths"
            )
    raise AssertionError("a solution exists, and was not found")


def _widths(chosen: Sequence[Option]) -> str:
    bits = sorted({option.bits for option in chosen if option.side == "weights"})
    if len(bits) == 1:
        return f"with {bits[0]} bits everywhere"
    return f"with weights of {bits[0]} to {bits[-1]} bits"
