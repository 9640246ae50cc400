"""How two models are quantized, call by call: what is another in the second than in the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table, Value
from fxquant.graph.journal import read_recipe
from fxquant.reporting.rows import Row
from fxquant.reporting.table import report

_GONE = "not there"


@dataclass(frozen=True)
class Change:
    """One call of either model."""

    name: str
    first: Row | None
    """None: the first model has no such call."""
    second: Row | None

    @property
    def differs(self) -> bool:
        """Whether it is quantized in another way: bits, ranges, or by more than 0.05 dB."""
        if self.first is None or self.second is None:
            return True
        a, b = self.first, self.second
        if (a.weights, a.inputs) != (b.weights, b.inputs):
            return True
        pairs = (a.weight_sqnr, b.weight_sqnr), (a.input_sqnr, b.input_sqnr)
        return any(abs(x - y) > 0.05 for x, y in pairs)


@dataclass(frozen=True, repr=False)
class Changes(Listed):
    """The calls that two models quantize in different ways, in execution order."""

    rows: tuple[Change, ...]
    summary: tuple[str, ...]

    def heads(self) -> list[str]:
        """Return what is to be said of both models."""
        return list(self.summary)

    def badness(self) -> Sequence[float | None]:
        """Return how many dB each call of the second model has less than that of the first."""
        found: list[float | None] = []
        for row in self.rows:
            ends = [each.weakest if each else None for each in (row.first, row.second)]
            known = [end[0] for end in ends if end is not None]
            found.append(known[0] - known[1] if len(known) == 2 else None)
        return found

    def tables(self) -> list[Table]:
        """Return a row for each call that differs."""
        return [Table(_COLUMNS, tuple(map(_cells, self.rows)))]


_COLUMNS = (
    Column("name", "call", folds=True),
    Column("first_weights", "weights", folds=True),
    Column("second_weights", "→ weights", folds=True),
    Column("first_weight_db", "w dB", "{:.1f}", spared=1),
    Column("second_weight_db", "→ w dB", "{:.1f}", spared=1),
    Column("first_inputs", "inputs", folds=True),
    Column("second_inputs", "→ inputs", folds=True),
    Column("first_input_db", "in dB", "{:.1f}", spared=2),
    Column("second_input_db", "→ in dB", "{:.1f}", spared=2),
)


def _cells(change: Change) -> tuple[Value, ...]:
    first, second = change.first, change.second
    cells: list[Value] = [change.name]
    for side in ("weights", "weight_sqnr", "inputs", "input_sqnr"):
        for row in (first, second):
            gone = _GONE if side == "weights" else None
            cells.append(gone if row is None else getattr(row, side) or None)
    return tuple(cells)


def changes(first: nn.Module, second: nn.Module) -> Changes:
    """Return how `second` is quantized otherwise than `first`, from what both keep; nothing runs.

    Args:
        first: what `prepare`, `convert` or `lower` made, or `load` read.
        second: another.

    Raises:
        PassError: one of them is none of these.
    """
    reports = report(first), report(second)
    by_name = [{row.name: row for row in each.rows} for each in reports]
    names = dict.fromkeys([*by_name[0], *by_name[1]])
    rows = [Change(name, by_name[0].get(name), by_name[1].get(name)) for name in names]
    differing = tuple(row for row in rows if row.differs)
    said = [
        f"{len(differing)} of {len(rows)} calls are quantized in another way",
        *(
            f"{which}: {read_recipe(model)!r}"
            for which, model in zip("AB", (first, second), strict=True)
        ),
        *(f"{which}: {each.sizes}" for which, each in zip("AB", reports, strict=True)),
    ]
    return Changes(differing, tuple(said))
