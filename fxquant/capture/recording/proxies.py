"""Proxies that know what they stand for: fake tensors, sizes, and containers of them.

x                     # a fake tensor (2, 3, 224, 224): shape, type and device, no values
n = x.shape[0]        # a node of the graph, known to be 2: it stays one
x.ndim, x.dtype       # 4, torch.float32: the same whatever the sizes
if n == 2: ...        # here Python needs a decision: that of the example, and a requirement
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

UNKNOWN = object()
"""What a proxy stands for where that depends on the values of tensors."""
_SAMPLE, _SAMPLE_PARAMETER = torch.zeros(1), nn.Parameter(torch.zeros(1))
_TENSOR_FACTS = ("ndim", "dtype", "layout", "names", "grad", "grad_fn", "requires_grad")


def known(value: Any) -> Any:
    """Return what a proxy stands for; anything else stands for itself."""
    if type(value) is ValueProxy:
        return value.known
    return UNKNOWN if isinstance(value, fx.Proxy) else value


class AssignableProxy(fx.Proxy):
    """A proxy whose items can be assigned, which is recorded."""

    tracer: Any

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class ValueProxy(AssignableProxy):
    """A proxy that answers Python's questions by what it stands for.

    Sizes stay nodes where they are computed with; `tracer.decisions` notes what Python was told.
    """

    def __init__(self, node: fx.Node, tracer: Any, known: Any) -> None:
        super().__init__(node, tracer)
        self.known = known

    def __getattr__(self, name: str) -> Any:
        known = self.known
        if known is UNKNOWN:
            return super().__getattr__(name)
        if isinstance(known, Tensor) and (name in _TENSOR_FACTS or name.startswith("is_")):
            fact = getattr(known, name)
            if not callable(fact):
                return self.tracer.decisions.fact(name, fact)
        found = getattr(known, name)  # raises AttributeError, as the value itself would
        if self.node.op == "get_attr" and name in ("shape", "size", "numel"):
            return getattr(known, name)  # no input can change it
        if isinstance(known, Mapping) and name in ("keys", "values", "items", "get"):
            return getattr({key: self._at(key) for key in known}, name)
        if callable(found):
            return Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.known, Mapping):
            return iter(self.known)
        return iter([self._at(index) for index in range(len(self))])

    def __len__(self) -> int:
        if self.known is UNKNOWN or not hasattr(self.known, "__len__"):
            raise TraceError("'len' of a value that depends on the values of tensors")
        return int(self.tracer.decisions.length(self))

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.known, Mapping):
            return item in self.known
        return any(bool(each == item) for each in iter(self))

    def __bool__(self) -> bool:
        if self.known is not UNKNOWN and not isinstance(self.known, Tensor):
            is_sized = isinstance(self.known, (tuple, list, Mapping))
            return len(self) > 0 if is_sized else bool(self.tracer.decisions.decide(self))
        return bool(self.tracer.to_bool(self))

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __str__(self) -> str:
        is_number = isinstance(self.known, (int, float, tuple))
        return str(self.tracer.decisions.formatted(self)) if is_number else repr(self)

    def __format__(self, specification: str) -> str:
        is_number = isinstance(self.known, (int, float))
        if is_number:
            return str(self.tracer.decisions.formatted(self, specification))
        return format(str(self), specification)

    def __eq__(self, other: Any) -> Any:
        return False if self._is_cache_key(other) else self._call(operator.eq, other)

    def __ne__(self, other: Any) -> Any:
        return True if self._is_cache_key(other) else self._call(operator.ne, other)

    def _is_cache_key(self, other: Any) -> bool:
        """Say whether a whole shape is compared with one that a module keeps: with its cache's.

        The two count as different, so that all is made anew, as it is right for any shape;
        `Decisions.check_kept` sees that the forward does so.
        """
        if not isinstance(self.known, torch.Size) or self.node.target not in (getattr, "size"):
            return False
        if type(other) is ValueProxy:
            return other.tracer is not self.tracer  # left behind by the call before
        is_shape = type(other) in (tuple, torch.Size)
        return other is None or (is_shape and bool(self.tracer.decisions.is_kept(other)))

    def __hash__(self) -> int:
        if isinstance(self.known, (int, float, tuple)):
            # No decision: as a key of a cache it would outlive the trace, with all that it holds.
            raise TypeError("unhashable: a size in tracing")
        return id(self)

    def _number(self) -> Any:
        if isinstance(self.known, (int, float)):
            return self.tracer.decisions.decide(self)
        raise TraceError("control flow on the values of a tensor: it has no number in tracing")

    def __round__(self, digits: int | None = None) -> Any:
        return self._call(round, *(() if digits is None else (digits,)))

    def __ceil__(self) -> Any:
        return self._call(math.ceil)

    def __floor__(self) -> Any:
        return self._call(math.floor)

    def __trunc__(self) -> Any:
        return self._call(math.trunc)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def _at(self, key: Any) -> Any:
        return self._call(operator.getitem, key)

    def _call(self, function: Any, *rest: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *rest), {})

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Let `np.float64(2) * x` and `np.sqrt(x.shape[1])` be what they are without numpy."""
        plain = [each.item() if isinstance(each, np.generic) else each for each in inputs]
        if method != "__call__" or options:
            return NotImplemented
        numbers = [known(each) for each in plain]
        if all(isinstance(each, (int, float)) for each in numbers):
            told = [self.tracer.decisions.decide(x) if type(x) is ValueProxy else x for x in plain]
            return ufunc(*told).item()
        names = {"divide": "true_divide", "negative": "neg"}
        return getattr(torch, names.get(ufunc.__name__, ufunc.__name__))(*plain)


def stands_for(value: Any, kinds: Any) -> bool:
    """Answer `isinstance(value, kinds)` for what a proxy stands for."""
    of_proxy = _isinstance(value, kinds)
    if of_proxy or type(value) is not ValueProxy or value.known is UNKNOWN:
        return of_proxy
    if not _isinstance(value.known, Tensor):
        return _isinstance(value.known, kinds)
    is_parameter = _isinstance(value.known, nn.Parameter)
    return _isinstance(_SAMPLE_PARAMETER if is_parameter else _SAMPLE, kinds)


_isinstance = builtins.isinstance
