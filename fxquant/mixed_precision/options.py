"""What mixed precision chooses among: one width of one layer's weights, or of activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table
from fxquant.errors import RecipeError

Side = Literal["weights", "activations"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One width for the weights of a layer, or for the activations that some calls read.

    `fxquant.mixed_precision.sensitivity.measure_sensitivities` makes them from a model and data.

    >>> Option(name="fc", side="weights", bits=3, loss=0.5, num_weights=650).bytes
    244
    """

    name: str
    """The call, as rules know it; of activations: the first one that reads them."""
    side: Side
    bits: int
    loss: float
    """How much it changes the model's outputs: the squared change of all of them, a sample."""
    num_weights: int = 0
    multiply_accumulates: int = 0
    """Of the layer, a sample, over all of its calls."""
    readers: tuple[str, ...] = ()
    """Of activations: all calls whose rules decide over them, and so must agree."""
    fixed: bool = False
    """The recipe asks for this width itself: there is no other choice, and no rule to write."""

    def __post_init__(self) -> None:
        if not 0 <= self.loss < math.inf:
            raise RecipeError(
                f"Option({self.name!r}, {self.side}, {self.bits} bits): loss={self.loss}: give 0 "
                "or a positive number"
            )

    @property
    def bytes(self) -> int:
        """What the integers of the weights take where they are stored packed; no scales."""
        return -(-self.num_weights * self.bits // 8)


@dataclass(frozen=True, repr=False)
class Options(Listed, Sequence[Option]):
    """A sequence of options, each with what it costs the outputs: `str()` is their table.

    >>> options = Options((Option(name="fc", side="weights", bits=3, loss=0.5, num_weights=650),))
    >>> len(options), options[0].bits
    (1, 3)
    """

    rows: tuple[Option, ...]

    @overload
    def __getitem__(self, index: int) -> Option: ...
    @overload
    def __getitem__(self, index: slice) -> Options: ...
    def __getitem__(self, index: int | slice) -> Option | Options:
        return Options(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Option]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def heads(self) -> list[str]:
        """Return of how many layers and activations they are, and how often each width is there."""
        sides = {side: {each.name for each in self if each.side == side} for side in _SIDES}
        widths = sorted({each.bits for each in self})
        return [
            f"{len(self)} options: weights of {len(sides['weights'])} layers, "
            f"{len(sides['activations'])} activations; bits: {', '.join(map(str, widths))}",
            "loss: what rounding to that width does to the outputs, squared, a sample",
        ]

    def badness(self) -> Sequence[float | None]:
        """Return each option's loss."""
        return [each.loss for each in self]

    def tables(self) -> list[Table]:
        """Return a row for each option."""
        rows = tuple(
            (each.name, each.side, each.bits, each.loss, each.bytes or None) for each in self
        )
        return [Table(_COLUMNS, rows)]


_SIDES: tuple[Side, ...] = ("weights", "activations")
_COLUMNS = (
    Column("name", "call", folds=True),
    Column("side", "side"),
    Column("bits", "bits"),
    Column("loss", "loss", "{:.3g}", is_bar=True),
    Column("bytes", "bytes", "{:,}"),
)
