"""Containers of values, of any class: what is in them, and others of the same class."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.immutable_collections import immutable_dict, immutable_list

_PLAIN = (dict, list, tuple, torch.Size, immutable_dict, immutable_list)


def items_of(value: Any) -> dict[Any, Any] | None:
    """Return what a container holds, by key, field or place; None of what is no container.

    >>> items_of([4, 5]), items_of({"x": 4}), items_of(4)
    ({0: 4, 1: 5}, {'x': 4}, None)
    """
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    return None


def made_like(value: Any, items: dict[Any, Any]) -> Any:
    """Return a container like `value`, of its class, that holds `items` instead.

    >>> made_like({"x": 4}, {"x": 5}), made_like((4, 5), {0: 6, 1: 7})
    ({'x': 5}, (6, 7))
    """
    if isinstance(value, tuple):
        kind: Any = type(value)
        return kind(*items.values()) if hasattr(value, "_fields") else kind(items.values())
    # Not by its class, which may want other arguments; what is immutable stands for a plain one.
    made: Any = copy.copy(value)
    if isinstance(value, (immutable_list, immutable_dict)):
        made = list(value) if isinstance(value, list) else dict(value)
    for key, item in items.items():
        if isinstance(value, (Mapping, list)):
            made[key] = item
        else:
            object.__setattr__(made, key, item)  # a frozen dataclass too
    return made


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


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of containers, in order.

    >>> tensors_in({"logits": torch.tensor(1), "others": ("text", [torch.tensor(2)])})
    [tensor(1), tensor(2)]
    """
    items = items_of(value)
    if items is None:
        return [value] if isinstance(value, Tensor) else []
    return [tensor for each in items.values() for tensor in tensors_in(each)]


def cloned(value: Any) -> Any:
    """Return a nest of containers with clones of its tensors: whoever gets it may write to them."""
    return map_leaves(value, lambda each: each.clone() if isinstance(each, Tensor) else each)


def is_own_container(value: Any) -> bool:
    """Say whether `value` is a container of a class that fx does not know, or would forget."""
    is_named = isinstance(value, tuple) and hasattr(value, "_fields")
    return not (type(value) in _PLAIN or is_named) and items_of(value) is not None


def holds_the_same(one: Any, other: Any) -> bool:
    """Say whether two containers hold the very same values, as items and as attributes."""
    mine, theirs = items_of(one), items_of(other)
    if mine is None or theirs is None:
        return one is other
    pairs = [(mine, theirs), (getattr(one, "__dict__", {}), getattr(other, "__dict__", {}))]
    return all(
        first.keys() == second.keys()
        and all(holds_the_same(first[key], second[key]) for key in first)
        for first, second in pairs
    )
