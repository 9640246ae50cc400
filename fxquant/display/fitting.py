"""Cells of text into a table of a given width: what may be broken is, then columns are left out."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from tabulate import tabulate

_GAP = 2  # between columns, as tabulate sets them
_NARROWEST = 12  # of a column that is broken into lines
_COMFORTABLE = 24  # columns are left out rather than break others into narrower ones
_EDGE = 2  # tabulate makes a column two wider than its heading


@dataclass(frozen=True)
class Cells:
    """A table's text, column by column."""

    headings: list[str]
    columns: list[list[str]]
    are_numbers: list[bool]
    fold: list[bool]
    """Which columns may be broken into lines."""
    spared: list[int]
    """Which may be left out: greatest number first, 0 never."""

    def without(self, number: int) -> Cells:
        """Return the others."""
        kept = [each for each in range(len(self.headings)) if each != number]
        return Cells(
            *([values[each] for each in kept] for values in vars(self).values()),
        )

    def widths(self) -> list[int]:
        """Return how wide each column is where nothing is broken."""
        columns = zip(self.headings, self.columns, strict=True)
        return [max([len(heading) + _EDGE, *map(len, cells)]) for heading, cells in columns]


def fitted(cells: Cells, width: int) -> str:
    """Return the table in lines of at most `width`; what was left out is said below it.

    >>> notes = ["folded bn1; fused relu", "why not: its output is read twice"]
    >>> cells = Cells(["call", "notes"], [["a", "b"], notes], [False, False], [False, True], [0, 0])
    >>> print(fitted(cells, 23))
    call    notes
    ------  --------------
    a       folded bn1;
            fused relu
    b       why not: its
            output is read
            twice
    """
    left_out: list[str] = []
    while _comfortable(cells) > width and any(cells.spared):
        number = max(range(len(cells.spared)), key=lambda each: cells.spared[each])
        left_out.insert(0, cells.headings[number])
        cells = cells.without(number)
    widths = _shared(cells, width)
    columns = [
        [_broken(cell, limit) for cell in column] if limit < natural else column
        for column, limit, natural in zip(cells.columns, widths, cells.widths(), strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    align = ["right" if each else "left" for each in cells.are_numbers]
    table = tabulate(rows, cells.headings, disable_numparse=True, colalign=align if rows else None)
    table = "\n".join(line.rstrip() for line in table.splitlines())
    if left_out:
        table += f"\n(not shown, for want of room: {', '.join(left_out)})"
    return table


def _comfortable(cells: Cells) -> int:
    """Return how wide the table is where what may be broken is not broken too often."""
    widths = [
        min(natural, _COMFORTABLE) if folds else natural
        for natural, folds in zip(cells.widths(), cells.fold, strict=True)
    ]
    return sum(widths) + _GAP * (len(widths) - 1)


def _shared(cells: Cells, width: int) -> list[int]:
    """Return the columns' widths: those that may be broken share what the others leave."""
    widths = cells.widths()
    room = width - _GAP * (len(widths) - 1) - sum(widths)
    folding = sorted(
        (number for number, folds in enumerate(cells.fold) if folds),
        key=lambda number: -widths[number],
    )
    while room < 0 and folding and widths[folding[0]] > _NARROWEST:
        widest = max(folding, key=lambda number: widths[number])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        room += 1
    return widths


def _broken(cell: str, width: int) -> str:
    """Return a cell in lines: between words, in names behind dots, at worst anywhere."""
    lines: list[str] = []
    for line in textwrap.wrap(cell, width, break_long_words=False):
        while len(line) > width:
            dots = [match.end() for match in re.finditer(r"[._/]", line) if match.end() <= width]
            end = dots[-1] if dots else width
            lines.append(line[:end])
            line = line[end:]
        lines.append(line)
    return "\n".join(lines)
