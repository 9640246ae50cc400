"""What a result hands to a page beyond sentences and tables: plain numbers and names, no drawing.

A figure speaks of rows of the main table by their names, what stands in its first column: the page
links it to the row of that name, and shows it beside the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["main", "second", "rest"]
"""What of a whole something is: what one wants, what is near it, what is left."""
NoteKind: TypeAlias = Literal["folded", "fused", "removed", "refused", "left"]


@dataclass(frozen=True)
class Tile:
    """One key number."""

    label: str
    value: str
    """As it is read, with its unit: "11.8 MB"."""
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """The key numbers, side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Bar:
    """What one row costs, in each of the series of its `Bars`."""

    name: str
    values: tuple[float | None, ...]
    """None where it is not known."""
    details: str = ""
    """A sentence beside the values, where one asks for more."""


@dataclass(frozen=True)
class Bars:
    """A bar a row, in the order of execution, for one series or several."""

    title: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    form: str = "{:.3g}"
    """How a value is written, with its unit."""
    note: str = ""
    """What the values are."""


@dataclass(frozen=True)
class Histogram:
    """How the values of one tensor are spread, and the range that its integers reach.

    >>> edges, counts = (-2.0, -1.0, 0.0, 1.0, 2.0), (1, 4, 4, 1)
    >>> Histogram("conv1", "weights", edges, counts, low=-1.0, high=1.0, bits=8).clipped
    0.2
    """

    name: str
    side: str
    """Of the call: "weights", "inputs", "output"."""
    edges: tuple[float, ...]
    """Of the bins, ascending: one more than there are counts."""
    counts: tuple[float, ...]
    low: float | None = None
    """Where values are clipped; None: nowhere."""
    high: float | None = None
    bits: int | None = None
    """Of the integers; None: the tensor is in float."""
    is_integers: bool = False
    """Whether the values are the integers themselves: one in the middle of each bin."""
    rounded: tuple[float, ...] = ()
    """Of the values that they are rounded to, in the same bins; empty: not known."""
    note: str = ""

    @property
    def clipped(self) -> float:
        """The share of the values in bins whose middle lies outside of the range."""
        low = -float("inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        middles = [(a + b) / 2 for a, b in zip(self.edges, self.edges[1:], strict=False)]
        pairs = zip(middles, self.counts, strict=True)
        outside = sum(count for middle, count in pairs if not low <= middle <= high)
        return outside / (sum(self.counts) or 1)


@dataclass(frozen=True)
class Share:
    """A part of a stacked bar."""

    label: str
    amount: float
    text: str
    """The amount as it is read: "99.3 %", "11.2 MB"."""
    tone: Tone = "main"


@dataclass(frozen=True)
class Stack:
    """One stacked bar."""

    label: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Shares:
    """Stacked bars on one scale: sizes before and after, coverage."""

    title: str
    stacks: tuple[Stack, ...]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """One try: what it cost and what it gave."""

    name: str
    x: float
    y: float
    details: str = ""
    is_chosen: bool = False


@dataclass(frozen=True)
class Points:
    """What several tries gave, against what they cost; numbered in their order."""

    title: str
    x_heading: str
    y_heading: str
    points: tuple[Point, ...]
    levels: tuple[tuple[str, float], ...] = ()
    """Lines across, with what they are: the float model's score, the target."""


@dataclass(frozen=True)
class Note:
    """What was done with a node, or was not, and why."""

    kind: NoteKind
    text: str


@dataclass(frozen=True)
class Line:
    """One node of a graph."""

    name: str
    """Of the node: lines of two graphs that share it stand side by side."""
    text: str
    notes: tuple[Note, ...] = ()
    row: str = ""
    """The name of its row in the main table; "": it has none."""


@dataclass(frozen=True)
class Graph:
    """A graph, and what it was before."""

    title: str
    after: tuple[Line, ...]
    before: tuple[Line, ...] = ()
    """Empty where it is not known."""
    note: str = ""
    """What was done, in numbers."""


Figure: TypeAlias = Tiles | Bars | Histogram | Shares | Points | Graph
