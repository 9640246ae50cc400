"""The names by which saved files know fxquant's own classes and functions.

    @stored_as("QuantizedConv2d")        →  "fxquant:QuantizedConv2d" in a file
    class QuantizedConv2d(…)

The decorator is the mark that a file may name what stands below it, and the only one. The name is
the file's own: whoever moves or renames the class leaves it, and saved models go on loading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Marked = TypeVar("_Marked", bound=Callable[..., Any])
_values: dict[str, Any] = {}
_names: dict[int, str] = {}


def stored_as(name: str) -> Callable[[_Marked], _Marked]:
    """Mark a class that files may make objects of, or a function that graphs in files may call.

    Subclasses need marks of their own.

    Raises:
        ValueError: something else has that name.
    """

    def mark(marked: _Marked) -> _Marked:
        known = _values.get(name, marked)
        if _path(known) != _path(marked):  # the same path: its module ran twice
            raise ValueError(
                f"{marked.__qualname__} cannot be stored as {name!r}: that is the name of "
                f"{_path(known)}"
            )
        _values[name], _names[id(marked)] = marked, name
        return marked

    return mark


def _path(marked: Callable[..., Any]) -> str:
    return f"{marked.__module__}.{marked.__qualname__}"


def stored_name(value: object) -> str | None:
    """Return the name that a class or a function was marked with, None if it was not."""
    return _names.get(id(value))


def value_stored_as(name: str) -> Any:
    """Return the class or function of that name, None if there is none."""
    return _values.get(name)


def stored_names() -> list[str]:
    """Return all names, in alphabetical order."""
    return sorted(_values)
