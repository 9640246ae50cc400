"""Objects of any class that a forward makes and returns with tensors inside: caches of attention.

A graph holds the object with slots in the places of the tensors, and fills a copy in each call.
Pickles keep it. Files, which hold no objects of unknown classes, do not: `save` says so.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn

_T = TypeVar("_T")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.Tensor, nn.Module)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in an object."""

    number: int


def proxies_inside(value: Any) -> list[fx.Proxy]:
    """Return the proxies that an object holds in its attributes, at any depth, in order."""
    return _found(value, fx.Proxy) if _may_hold(value) else []


def slots_inside(value: Any) -> list[Slot]:
    """Return the slots that an object holds."""
    return _found(value, Slot) if _may_hold(value) else []


def _may_hold(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, _PLAIN) and not callable(value)


def emptied(value: Any, proxies: Sequence[fx.Proxy]) -> Any:
    """Return a copy of an object with slots in the places of the proxies."""
    memo: dict[int, Any] = {id(each): Slot(number) for number, each in enumerate(proxies)}
    return copy.deepcopy(value, memo)


def filled(prototype: Any, values: tuple[Any, ...]) -> Any:
    """Return a copy of an object with `values` in the places of its slots."""
    slots = slots_inside(prototype)
    return copy.deepcopy(prototype, {id(slot): values[slot.number] for slot in slots})


def _found(value: Any, kind: type[_T]) -> list[_T]:
    """Return what is of a kind inside of an object, each once."""
    found: dict[int, _T] = {}
    seen: set[int] = set()

    def look(each: Any) -> None:
        if isinstance(each, kind):
            found[id(each)] = each
        elif id(each) not in seen and not isinstance(each, _PLAIN):
            seen.add(id(each))
            inside: list[Any] = list(vars(each).values()) if hasattr(each, "__dict__") else []
            if isinstance(each, dict):
                inside += each.values()
            elif isinstance(each, (list, tuple, set)):
                inside += each
            for item in inside:
                look(item)

    look(value)
    return list(found.values())
