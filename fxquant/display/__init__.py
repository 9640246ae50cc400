"""How results are shown: tables that fit the terminal, notebooks, files, a page."""

from fxquant.display.files import written
from fxquant.display.shown import Listed, Shown
from fxquant.display.table import Column, Table, Value

__all__ = [
    "Column",
    "Listed",
    "Shown",
    "Table",
    "Value",
    "written",
]
