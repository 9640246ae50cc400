"""Options as the Python that makes them again, without what they say by default.

Rule(match='fc', skip=False, weights=4, activations='inherit')    →  Rule('fc', weights=4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from torch import nn


def short_repr(options: Any) -> str:
    """Return the call that makes a dataclass again; the fields that can, go by place."""
    given = changed_fields(options)
    by_place = [each.name for each in fields(options) if not each.kw_only and each.name in given]
    first = [as_code(given.pop(name)) for name in by_place[:1]]
    return f"{type(options).__name__}({', '.join([*first, *keywords(given)])})"


def changed_fields(options: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, in order."""
    values = {}
    for each in fields(options):
        value = getattr(options, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if not is_same(value, default):
            values[each.name] = value
    return values


def is_same(value: object, other: object) -> bool:
    """Say whether both are equal, and would be written in one way: True is not 1 here."""
    return type(value) is type(other) and value == other


def keywords(options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a call."""
    return [f"{name}={as_code(value)}" for name, value in options.items()]


def as_code(value: object) -> str:
    """Return the Python of a value.

    >>> as_code((nn.Linear, 4)), as_code(["fc"])
    ('(nn.Linear, 4)', "['fc']")
    """
    if isinstance(value, type):
        own, name = value.__qualname__, f"{value.__module__}.{value.__qualname__}"
        if getattr(nn, own, None) is value:
            return f"nn.{own}"
        return name.removeprefix("torch.") if name.startswith("torch.nn.") else name
    if isinstance(value, list):
        return f"[{', '.join(map(as_code, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(as_code, value))}{',' * (len(value) == 1)})"
    return repr(value)
