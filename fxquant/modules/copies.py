"""What calls have left in a model: copies without its gradients.

    self.attention = softmax(…)        # kept by a forward, with the gradients that led to it

`copy.deepcopy` refuses tensors that were computed with gradients: activations that a model keeps,
states in buffers, weights that hooks compute. In the copy they are values, as all else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from fxquant.numerics.containers import map_leaves

_Module = TypeVar("_Module", bound=nn.Module)


def copy_module(module: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """Return `copy.deepcopy(module, memo)`, tensors that were computed with gradients detached."""
    memo = {} if memo is None else memo
    for tensor in _computed(module):
        memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(module, memo)


def detach_results(module: nn.Module) -> None:
    """Detach, in place, what a call computed with gradients and kept: no other goes on from it."""
    if any(True for _ in _computed(module)):
        for each in module.modules():
            _detached(vars(each))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_leaf else value.detach()
    if isinstance(value, dict):
        value.update({key: _detached(each) for key, each in value.items()})
    elif isinstance(value, list):
        value[:] = map(_detached, value)
    elif isinstance(value, tuple):
        return map_leaves(value, _detached)
    return value


def _computed(module: nn.Module) -> Iterator[Tensor]:
    """Yield the results of computations among attributes and buffers, and in containers there."""
    waiting: list[Any] = [vars(each) for each in module.modules()]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
