"""Saving and loading: a container of its own that runs no code."""

from fxquant.storage.files import load, save

__all__ = [
    "load",
    "save",
]
