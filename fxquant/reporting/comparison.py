"""The result of comparing two forms of a model node by node, and its table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from tabulate import tabulate
from torch import Tensor

from fxquant.numerics.decibels import decibels

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


@dataclass(frozen=True)
class Comparison:
    """One row for each node that both models compute, in execution order."""

    rows: tuple[NodeComparison, ...]

    @property
    def first_departure(self) -> NodeComparison | None:
        """The first node that alone gives something else; None if all agree."""
        return next((row for row in self.rows if row.departs), None)

    def __str__(self) -> str:
        columns = ["node", "value of", "kind", "step", "differ", "most", "dB"]
        columns += ["differ in place", "most", "dB", ""]
        cells = []
        for row in self.rows:
            is_float = math.isnan(row.step)
            cells.append(
                [
                    row.name,
                    row.reference,
                    row.kind,
                    "" if is_float else f"{row.step:.4g}",
                    *_cells(row.alone, is_float),
                    *_cells(row.in_place, is_float),
                    "departs" if row.departs else "",
                ]
            )
        return tabulate(cells, columns, disable_numparse=True)


def _cells(difference: Difference, is_float: bool) -> list[str]:
    if is_float:
        return ["", f"{difference.largest:.2g}", f"{difference.sqnr:.1f}"]
    steps = f"{round(difference.largest)} steps"
    return [f"{100 * difference.share:.3g} %", steps, f"{difference.sqnr:.1f}"]
