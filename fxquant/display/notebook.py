"""What a notebook shows below a cell: the summary, and tables that scroll by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxquant.display.table import Column, Table

_MOST_ROWS = 200  # notebooks keep what they show: `to_html` has all
_CELL = "padding:2px 10px;white-space:nowrap;text-align:"


def as_html(heads: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the fragment: text only, nothing that runs, in the notebook's own colours."""
    said = "".join(f"<div>{escape(head)}</div>" for head in heads)
    return f'<div style="line-height:1.5">{said}{"".join(map(_table, tables))}</div>'


def _table(table: Table) -> str:
    columns = table.shown_columns
    title = f"<b>{escape(table.title)}</b>" if table.title else ""
    headings = "".join(
        f'<th style="{_CELL}{_side(table, column)}">{escape(column.heading)}</th>'
        for column in columns
    )
    rows = "".join(f"<tr>{_row(table, columns, row)}</tr>" for row in range(_num_shown(table)))
    more = len(table.rows) - _num_shown(table)
    rest = f"<div>{more} more rows: print it, or to_html(path)</div>" if more else ""
    return (
        f'<div style="overflow-x:auto;margin:8px 0">{title}<table>'
        f"<thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>{rest}</div>"
    )


def _num_shown(table: Table) -> int:
    return min(len(table.rows), _MOST_ROWS)


def _row(table: Table, columns: Sequence[Column], row: int) -> str:
    cells = []
    for column in columns:
        value = table.rows[row][table.columns.index(column)]
        style = f"{_CELL}{_side(table, column)}"
        cells.append(f'<td style="{style}">{escape(column.shown(value))}</td>')
    return "".join(cells)


def _side(table: Table, column: Column) -> str:
    return "right" if table.is_number(column) else "left"
