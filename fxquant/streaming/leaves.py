"""One function over all that a nest of tuples, lists and dicts holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to all in it that is no tuple, list or dict.

    The types of these stay: `torch.Size`, named tuples, what `torch.max` returns.
    """
    if isinstance(value, dict):
        return type(value)((key, map_leaves(each, function)) for key, each in value.items())
    if not isinstance(value, (tuple, list)):
        return function(value)
    mapped = [map_leaves(each, function) for each in value]
    if all(new is old for new, old in zip(mapped, value, strict=True)):
        return value
    if hasattr(value, "_fields"):
        return type(value)(*mapped)
    return type(value)(mapped)
