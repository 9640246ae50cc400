"""Lowered graphs as flat lists of oneDNN's primitives, each made once."""

from fxquant.programs.library import why_unavailable
from fxquant.programs.running import programs_of

__all__ = [
    "programs_of",
    "why_unavailable",
]
