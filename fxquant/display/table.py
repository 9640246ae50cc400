"""The table behind everything that is shown: columns that say how their values are written, rows.

table = Table((Column("name", "call"), Column("db", "dB", "{:.1f}")), (("conv1", 31.27),))
print(table.text(80))        # for a terminal: it never gets wider than that
table.records()              # [{"name": "conv1", "db": 31.27}]: for files
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tabulate import tabulate

from fxquant.display.fitting import Cells, fitted
from fxquant.display.terminal import wrapped

Value: TypeAlias = str | int | float | None
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """What stands below one heading.

    >>> Column("db", "dB", "{:.1f}").shown(31.27), Column("db", "dB").shown(None)
    ('31.3', '')
    """

    key: str
    """Its name in CSV, JSON and pandas, and for `sort`."""
    heading: str
    form: str | Callable[[Any], str] = "{}"
    """How a value is written: a format, or a function."""
    folds: bool = False
    """Whether text may be broken into lines where the table is too wide."""
    usual: bool = False
    """Whether what most rows have is said once, above the table, and left out of the rows."""
    spared: int = 0
    """0: always shown. Where the table is too wide, columns are left out, greatest number first."""
    is_bar: bool = False
    """Whether a page draws its values as bars."""

    def shown(self, value: Value) -> str:
        """Return a value as it is read; nothing for None."""
        if value is None:
            return ""
        return self.form.format(value) if isinstance(self.form, str) else self.form(value)


@dataclass(frozen=True)
class Table:
    """Rows of plain values: text, numbers, None where there is nothing.

    A number that is not one (NaN) becomes None when the table is made.

    >>> print(Table((Column("n", "call"), Column("b", "bits")), (("a", 8), ("b", 4))).text(80))
    call      bits
    ------  ------
    a            8
    b            4
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        rows = tuple(tuple(_without_nan(value) for value in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)

    @property
    def shown_columns(self) -> tuple[Column, ...]:
        """Those that say something in at least one row."""
        used = [number for number, _ in enumerate(self.columns) if any(self._values(number))]
        return tuple(self.columns[number] for number in used)

    def values(self, key: str) -> list[Value]:
        """Return the values below the heading of that key, row by row."""
        number = [column.key for column in self.columns].index(key)
        return [row[number] for row in self.rows]

    def records(self) -> list[dict[str, Value]]:
        """Return each row by the columns' keys."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def usual(self) -> dict[Column, str]:
        """Return what is said once, above the table: what more than half of the rows have."""
        found = {}
        for number, column in enumerate(self.columns):
            shown = [each for each in self._values(number) if each]
            most = max(dict.fromkeys(shown), key=shown.count, default="")
            if column.usual and len(shown) > 1 and 2 * shown.count(most) > len(shown):
                found[column] = most
        return found

    def text(self, width: int) -> str:
        """Return the table in at most `width` characters a line, if that can be done."""
        usual = self.usual()
        columns = [
            each for each in self.shown_columns if any(self._cells(each, usual.get(each, "")))
        ]
        cells = Cells(
            headings=[each.heading for each in columns],
            columns=[self._cells(each, usual.get(each, "")) for each in columns],
            are_numbers=[self.is_number(each) for each in columns],
            fold=[each.folds for each in columns],
            spared=[each.spared for each in columns],
        )
        above = [f"{column.heading}: {said}" for column, said in usual.items()]
        said = f"{'; '.join(above)}, where a row says nothing else" if above else ""
        lines = (self.title, wrapped(said, width), fitted(cells, width))
        return "\n".join(line for line in lines if line)

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, whole."""
        columns = self.shown_columns
        shown = [self._values(self.columns.index(each)) for each in columns]
        safe = [[each.replace("|", "\\|").replace("\n", " ") for each in cells] for cells in shown]
        align = ["right" if self.is_number(each) else "left" for each in columns]
        headings = [each.heading for each in columns]
        rows = list(zip(*safe, strict=True))
        return tabulate(rows, headings, "github", disable_numparse=True, colalign=align)

    def select(self, numbers: Sequence[int]) -> Table:
        """Return the table of these rows, in this order."""
        return replace(self, rows=tuple(self.rows[number] for number in numbers))

    def is_number(self, column: Column) -> bool:
        """Say whether a column holds nothing but numbers, which stand to the right."""
        return not any(isinstance(value, str) for value in self.values(column.key))

    def _cells(self, column: Column, usual: str) -> list[str]:
        """Return what stands in the column: of what is usual nothing, a dash for nothing."""
        shown = self._values(self.columns.index(column))
        if not usual or usual not in shown:
            return shown
        if all(each in ("", usual) for each in shown):
            return [""] * len(shown)
        return [{usual: "", "": NOTHING}.get(each, each) for each in shown]

    def _values(self, number: int) -> list[str]:
        column = self.columns[number]
        return [column.shown(row[number]) for row in self.rows]

    def __iter__(self) -> Iterator[tuple[Value, ...]]:
        return iter(self.rows)


def _without_nan(value: Value) -> Value:
    return None if isinstance(value, float) and math.isnan(value) else value
