"""A table on a page: it sorts and filters where JavaScript runs, and is whole where it does not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape

from fxquant.display.table import NOTHING, Column, Table, Value

_FEWEST_TO_FILTER = 6
_KIND = "kind"  # the key of the column whose values can be chosen among


@dataclass(frozen=True)
class RowIds:
    """Where on the page the row of a name is."""

    by_name: dict[str, str]
    in_order: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Table | None, prefix: str) -> RowIds:
        """Return the ids of a table's rows; of rows with one name, links lead to the first."""
        rows = table.rows if table is not None else ()
        by_name: dict[str, str] = {}
        ids = tuple(f"{prefix}-{number}" for number in range(len(rows)))
        for row, each in zip(rows, ids, strict=True):
            by_name.setdefault(str(row[0]), each)
        return cls(by_name, ids)

    def attributes(self, number: int, name: str) -> str:
        """Return what a row's tag says: its own id, and that of the first row of its name."""
        return f' id="{self.in_order[number]}" data-row="{self.by_name[name]}"'

    def link(self, name: str, inside: str) -> str:
        """Return HTML as a link to the row of a name; as it is, if there is none."""
        if name not in self.by_name:
            return inside
        return f'<a href="#{self.by_name[name]}">{inside}</a>'


def breakable(name: str) -> str:
    """Return a name escaped, which lines may break behind its dots.

    >>> breakable("layer1.0.<conv>")
    'layer1.<wbr>0.<wbr>&lt;conv&gt;'
    """
    return re.sub(r"(?<=[._/])(?=[^._/])", "<wbr>", escape(name))


def text_html(text: str) -> str:
    r"""Return a sentence escaped, numbers and their units on one line.

    >>> text_html("5.9 MB < 10 % of it")
    '5.9\xa0MB &lt; 10\xa0% of it'
    """
    return re.sub(
        r"(?<=\d) (?=(?:dB|%|[kMGT]?B|bytes|bits|[kMGT]|m?s)(?!\w))", "\xa0", escape(text)
    )


def table_html(table: Table, prefix: str, ids: RowIds | None, heading: str) -> str:
    """Return a table with its title, what to filter by, and what is usual in it.

    Args:
        table: that has rows.
        prefix: of ids, unlike any other's on the page.
        ids: of its rows, if anything leads to them.
        heading: the tag of its title.
    """
    usual = table.usual()
    columns = [each for each in table.shown_columns if not _is_only_usual(table, each, usual)]
    said = "; ".join(f"{column.heading} {text}" for column, text in usual.items())
    above = (
        f'<p class="usual">Where a row says nothing else: {text_html(said)}.</p>' if said else ""
    )
    title = f"<{heading}>{escape(table.title)}</{heading}>" if table.title else ""
    headings = "".join(_heading(table, column) for column in columns)
    scales = {column: _greatest(table.values(column.key)) for column in columns if column.is_bar}
    rows = []
    for number, row in enumerate(table.rows):
        cells = [
            _cell(table, column, row[table.columns.index(column)], usual, scales, place == 0)
            for place, column in enumerate(columns)
        ]
        own = ids.attributes(number, str(row[0])) if ids else ""
        rows.append(f"<tr{own}>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    name = escape(table.title or "rows")
    return (
        f'<div class="table block">{title}{_controls(table, prefix)}{above}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table id="{prefix}">'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
    )


def _is_only_usual(table: Table, column: Column, usual: dict[Column, str]) -> bool:
    said = usual.get(column)
    return said is not None and all(
        column.shown(value) in ("", said) for value in table.values(column.key)
    )


def _controls(table: Table, prefix: str) -> str:
    """Return the box to filter by, and the choice of a kind; JavaScript shows them."""
    if len(table.rows) < _FEWEST_TO_FILTER:
        return ""
    kinds = ""
    if any(column.key == _KIND for column in table.columns):
        found = sorted({str(value) for value in table.values(_KIND) if value is not None})
        options = "".join(f'<option value="{escape(each)}">{escape(each)}' for each in found)
        kinds = (
            f'<select aria-label="Kind" aria-controls="{prefix}">'
            f'<option value="">all kinds{options}</select>'
        )
    return (
        '<div class="controls" hidden><input type="search" placeholder="Filter rows" '
        f'aria-label="Filter rows" aria-controls="{prefix}" autocomplete="off">{kinds}'
        f'<output aria-live="polite">{len(table.rows)} rows</output></div>'
    )


def _heading(table: Table, column: Column) -> str:
    number = ' class="num"' if table.is_number(column) else ""
    return (
        f'<th scope="col" aria-sort="none"{number}>'
        f'<button type="button">{escape(column.heading) or "&nbsp;"}</button></th>'
    )


def _cell(
    table: Table,
    column: Column,
    value: Value,
    usual: dict[Column, str],
    scales: dict[Column, float],
    is_first: bool,
) -> str:
    shown = column.shown(value)
    if is_first:
        return f'<th scope="row">{breakable(shown)}</th>'
    kinds, more = [], ""
    if table.is_number(column):
        kinds.append("num")
    if value is not None and not (
        isinstance(value, str) and shown == value and column not in usual
    ):
        more = f' data-v="{escape(str(value))}"'
    if column in scales and isinstance(value, (int, float)) and scales[column] > 0:
        kinds.append("bar")
        more += f' style="--b:{100 * min(1.0, max(0.0, value / scales[column])):.1f}"'
    if column.folds:
        kinds.append("long")
    if column.key == _KIND:
        more += ' data-kind=""'
    said = usual.get(column)
    text = shown if said is None else {said: "", "": NOTHING}.get(shown, shown)
    named = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{named}{more}>{breakable(text) if column.folds else text_html(text)}</td>"


def _greatest(values: list[Value]) -> float:
    found = [
        float(each) for each in values if isinstance(each, (int, float)) and math.isfinite(each)
    ]
    return max(found, default=0.0)
