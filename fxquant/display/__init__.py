"""How results are shown: tables that fit the terminal, notebooks, files, a page."""

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
from fxquant.display.files import written
from fxquant.display.shown import Listed, Shown
from fxquant.display.table import Column, Table, Value

__all__ = [
    "Bar",
    "Bars",
    "Column",
    "Figure",
    "Graph",
    "Histogram",
    "Line",
    "Listed",
    "Note",
    "Point",
    "Points",
    "Share",
    "Shares",
    "Shown",
    "Stack",
    "Table",
    "Tile",
    "Tiles",
    "Value",
    "written",
]
