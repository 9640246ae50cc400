"""One function over all that a nest of containers holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fxquant.numerics.containers import items_of, made_like


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to all in it that is no container.

    The types of containers stay: `torch.Size`, named tuples, what `torch.max` returns, dataclasses
    and `ModelOutput`s.
    """
    items = items_of(value)
    if items is None:
        return function(value)
    mapped = {key: map_leaves(each, function) for key, each in items.items()}
    if not isinstance(value, Mapping) and all(mapped[key] is items[key] for key in items):
        return value
    return made_like(value, mapped)
