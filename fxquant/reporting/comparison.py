"""The result of comparing two forms of a model node by node, and its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxquant.display.figures import Bar, Bars, Figure
from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table, Value
from fxquant.numerics.decibels import decibels
from fxquant.reporting.drawn.losses import noise_percent

_MIN_ALONE_SQNR = 60.0  # dB; a float node alone differs by its arithmetic only


@dataclass
class Difference:
    """How far results are from what they should be, over all batches."""

    num_values: int = 0
    num_different: int = 0
    largest: float = 0.0
    """In steps where the result is quantized, else in its own units."""
    power: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Tensor, found: Tensor, step: float) -> None:
        """Count one result in; both in floating point."""
        errors = (found.to(torch.float64) - wanted).abs_()
        self.num_values += errors.numel()
        if errors.numel() == 0:
            return
        steps = errors / step
        self.num_different += int((steps > 0.5).sum() if step != 1 else (errors > 0).sum())
        self.largest = max(self.largest, steps.max().item())
        self.power += wanted.to(torch.float64).square().sum().item()
        self.noise += errors.square().sum().item()

    @property
    def share(self) -> float:
        """The share of values that differ."""
        return self.num_different / self.num_values if self.num_values else 0.0

    @property
    def sqnr(self) -> float:
        """Signal over difference in dB; infinite where there is none."""
        return decibels(max(self.power, 1e-300), self.noise)


@dataclass(frozen=True)
class NodeComparison:
    """One node of the second model against the node of the first whose value it computes."""

    name: str
    reference: str
    kind: str
    step: float
    """Scale of the result's integers; NaN where it is in float."""
    alone: Difference = field(default_factory=Difference)
    in_place: Difference = field(default_factory=Difference)

    @property
    def departs(self) -> bool:
        """Whether the node does more than round otherwise: alone it is off by over one step.

        In float: its result agrees to less than 60 dB.
        """
        if math.isnan(self.step):
            return self.alone.sqnr < _MIN_ALONE_SQNR
        return round(self.alone.largest) > 1


@dataclass(frozen=True, repr=False)
class Comparison(Listed):
    """One row for each node that both models compute, in execution order."""

    rows: tuple[NodeComparison, ...]

    @property
    def first_departure(self) -> NodeComparison | None:
        """The first node that alone gives something else; None if all agree."""
        return next((row for row in self.rows if row.departs), None)

    def heads(self) -> list[str]:
        """Return whether the two part, and where."""
        departing, number = [row for row in self.rows if row.departs], len(self.rows)
        if not self.rows:
            return ["nothing to compare: the models have no node in common"]
        last = f"at the last, {self.rows[-1].name}, {self.rows[-1].in_place.sqnr:.1f} dB in place"
        if not departing:
            return [f"all {number} nodes agree, each alone on the first model's values", last]
        first = departing[0]
        return [
            f"{len(departing)} of {number} nodes depart; the first is {first.name} ({first.kind}), "
            f"{first.alone.sqnr:.1f} dB alone",
            last,
        ]

    def badness(self) -> Sequence[float | None]:
        """Return how little each node alone agrees: its dB, negative."""
        return [-row.alone.sqnr for row in self.rows]

    def tables(self) -> list[Table]:
        """Return a row for each node: alone on the first model's values, and in its place."""
        return [Table(_COLUMNS, tuple(map(_cells, self.rows)))]

    def figures(self) -> list[Figure]:
        """Return how far each node is off, alone and in its place."""
        bars = tuple(
            Bar(
                row.name,
                (noise_percent(row.alone.sqnr), noise_percent(row.in_place.sqnr)),
                f"{row.kind}{'; departs' if row.departs else ''}",
            )
            for row in self.rows
        )
        note = "Difference against the first model's value, root mean squares: 1 % is 40 dB."
        return [Bars("Where the two differ", ("alone", "in place"), bars, "{:.3g} %", note)]


def _in_steps(number: float) -> str:
    return f"{round(number)} steps"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


_COLUMNS = (
    Column("name", "node", folds=True),
    Column("reference", "value of", folds=True, spared=3),
    Column("kind", "kind", folds=True, spared=2),
    Column("step", "step", "{:.4g}", spared=4),
    Column("alone_share", "alone", _percent, spared=1),
    Column("alone_steps", "most", _in_steps, spared=1),
    Column("alone_largest", "largest", "{:.2g}", spared=3),
    Column("alone_db", "alone dB", "{:.1f}", is_bar=True),
    Column("share", "in place", _percent, spared=5),
    Column("steps", "most in place", _in_steps, spared=5),
    Column("largest", "largest in place", "{:.2g}", spared=5),
    Column("db", "in place dB", "{:.1f}", is_bar=True),
    Column("departs", ""),
)


def _cells(row: NodeComparison) -> tuple[Value, ...]:
    is_float = math.isnan(row.step)
    return (
        row.name,
        row.reference,
        row.kind,
        row.step,
        *_differences(row.alone, is_float),
        *_differences(row.in_place, is_float),
        "departs" if row.departs else None,
    )


def _differences(difference: Difference, is_float: bool) -> tuple[Value, ...]:
    """Return the share of values that differ, the most in steps or units, and dB."""
    if is_float:
        return None, None, difference.largest, difference.sqnr
    return difference.share, difference.largest, None, difference.sqnr
