"""A result with all that a page can show, and with names that are markup if none escapes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxquant.display.figures import (
    Bar,
    Bars,
    Figure,
    Graph,
    Histogram,
    Line,
    Note,
    Point,
    Points,
    Share,
    Shares,
    Stack,
    Tile,
    Tiles,
)
from fxquant.display.shown import Listed, Shown
from fxquant.display.table import Column, Table, Value

SCRIPT = "</script><script>window.broken = true</script>"
IMAGE = "<img src=x onerror='window.broken = true'>"
QUOTES = '" onpointerenter="window.broken = true" \'&amp; {{}} –µ漢'
NASTY = (SCRIPT, IMAGE, QUOTES)
NAMES = ("conv1", "layer1.0.conv", "layer1.1.conv", *NASTY, "a" * 90, "fc")
KINDS = ("Conv2d", "Conv2d", "Conv2d", "Linear", "Linear", IMAGE, "add", "Linear")
DECIBELS = (31.5, 9.75, 110.0, None, 27.0, math.inf, math.nan, 20.0)
COLUMNS = (
    Column("name", "call", folds=True),
    Column("kind", "kind"),
    Column("weights", "weights", usual=True),
    Column("db", "dB", "{:.1f}", is_bar=True),
    Column("notes", "notes", folds=True),
)


@dataclass(frozen=True, repr=False)
class Losses(Listed):
    """Rows of a name, a kind, weights, dB and notes."""

    rows: tuple[tuple[Value, ...], ...]
    drawn: tuple[Figure, ...] = ()
    inner: tuple[Shown, ...] = ()

    def heads(self) -> list[str]:
        return [f"{len(self.rows)} layers", f"of {SCRIPT}", QUOTES]

    def tables(self) -> list[Table]:
        more = Table((Column("name", SCRIPT), Column("share", "share")), ((IMAGE, 0.5),), QUOTES)
        return [Table(COLUMNS, self.rows), more]

    def badness(self) -> Sequence[float | None]:
        return [None] * len(self.rows)

    def figures(self) -> list[Figure]:
        return list(self.drawn)

    def parts(self) -> list[Shown]:
        return list(self.inner)


def rows(names: Sequence[str] = NAMES) -> tuple[tuple[Value, ...], ...]:
    """Return a row a name."""
    found = []
    for number, name in enumerate(names):
        weights = "8 bits" if number == 1 else "4 bits"
        notes = f"not folded: {SCRIPT} {'is read twice and ' * 12}" if number % 3 == 0 else None
        kind, decibels = KINDS[number % len(KINDS)], DECIBELS[number % len(DECIBELS)]
        found.append((name, kind, weights, decibels, notes))
    return tuple(found)


def figures(names: Sequence[str] = NAMES) -> tuple[Figure, ...]:
    """Return one of each kind of figure."""
    values = [(1.0 + number, None if number % 2 else 0.5) for number, _ in enumerate(names)]
    bars = tuple(Bar(name, each, QUOTES) for name, each in zip(names, values, strict=True))
    edges = tuple(number / 8 for number in range(-8, 9))
    counts = tuple(range(1, 17))
    histograms = [
        Histogram(name, side, edges, counts, -0.5, 0.75, 8)
        for side in ("weights", IMAGE)
        for name in names
    ]
    before = [Line(f"n{number}", f"n{number} = {name}") for number, name in enumerate(names)]
    after = [
        Line(line.name, f"{line.text}  # {SCRIPT}", (Note("refused", IMAGE),), name)
        for line, name in zip(before[1:], names[1:], strict=True)
    ]
    return (
        Tiles((Tile(SCRIPT, "5.9 MB", QUOTES), Tile("Weakest", "9.8 dB"))),
        Bars(SCRIPT, ("weights", IMAGE), bars, "{:.1f} %", QUOTES),
        Shares(IMAGE, (Stack(SCRIPT, (Share(QUOTES, 3.0, "75 %"), Share("left", 1.0, "25 %"))),)),
        Points(QUOTES, "s", IMAGE, (Point(SCRIPT, 1.0, 2.0, IMAGE, True), Point("b", 50.0, 3.0))),
        Graph(SCRIPT, tuple(after), tuple(before), QUOTES),
        Graph(IMAGE, tuple(after)),
        *histograms,
    )


def example() -> Losses:
    """Return the result, with another inside."""
    return Losses(rows(), figures(), (Losses(rows(NAMES[:2])),))
