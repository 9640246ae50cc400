"""Proxies that know what they stand for: fake tensors, sizes, and containers of them.

x                     # a fake tensor (2, 3, 224, 224): shape, type and device, no values
n = x.shape[0]        # a node of the graph, known to be 2: it stays one
x.ndim, x.dtype       # 4, torch.float32: the same whatever the sizes
if n == 2: ...        # here Python needs a decision: that of the example, and a requirement
"""

from __future__ import annotations

import builtins
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.fx.proxy import Attribute, TraceError

from fxquant.modules.overrides import why_overridden
from fxquant.numerics.containers import items_of, made_like

_logger = logging.getLogger("fxquant")

UNKNOWN = object()
"""What a proxy stands for where that depends on the values of tensors."""
_SAMPLE, _SAMPLE_PARAMETER = torch.zeros(1), nn.Parameter(torch.zeros(1))
_CHANGING = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior")
_RESHAPING = ("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "resize_")
_TENSOR_FACTS = ("ndim", "dtype", "layout", "names", "grad", "grad_fn", "requires_grad")


class Values:
    """What the nodes of a graph are for an example: computed on fake tensors."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.is_computing = False
        self._results: dict[Any, Any] = {}

    def faked(self, value: Any) -> Any:
        """Return a tree with fake tensors in the places of the tensors."""
        return map_tensors(value, self._fake)

    def _fake(self, tensor: Tensor) -> Any:
        if isinstance(tensor, FakeTensor):  # of another mode, with which none of this one mix
            with self._mode:
                return torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
                )
        return self._mode.from_tensor(tensor, static_shapes=True)

    def compute(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what `function` gives for what the proxies in its arguments stand for.

        What gave a result once gives the same again: fake tensors cost 100 times a look-up, and
        networks are made of equal layers.
        """
        if getattr(function, "__name__", "") in _RESHAPING and type(args[0]) is ValueProxy:
            args[0].known = map_tensors(args[0].known, self._fake)  # others stand for the same
        args, kwargs = map_aggregate((args, kwargs), known)
        if _holds_unknown((args, kwargs)):
            return UNKNOWN
        self.is_computing = True  # modules' attributes are no proxies meanwhile
        key = self._key(function, args, kwargs)
        self.is_computing = False
        if key is None or key not in self._results:
            result = self._computed(function, args, kwargs)
            if key is None:
                return result
            self._results[key] = result
        return self._results[key]

    def _computed(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.is_computing = True
        try:
            with self._mode, torch.no_grad():
                return function(*args, **kwargs)
        except Exception as error:  # fake tensors cannot do what depends on values
            _logger.debug("%s: not known in tracing: %s", function, error)
            return UNKNOWN
        finally:
            self.is_computing = False

    def _key(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Return what decides the result; None where something else may, or it writes."""
        if isinstance(function, nn.Module):
            is_pytorchs = type(function).__module__.startswith("torch.nn.modules.")
            if not is_pytorchs or function._modules or why_overridden(function) is not None:
                return None
            tensors = (*function._parameters.values(), *function._buffers.values())
            function = (type(function), function.extra_repr(), *map(_signature, tensors))
        name = getattr(function, "__name__", "")
        if name in ("setitem", *_CHANGING) or name.endswith("_"):
            return None
        try:
            key = (function, _signature(args), _signature(kwargs))
            hash(key)
        except TypeError:
            return None
        return key


def _signature(value: Any) -> Any:
    """Return what of an argument decides the shape of a result."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_signature, value))
    if isinstance(value, dict):
        return tuple((name, _signature(each)) for name, each in value.items())
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    return type(value), value


def known(value: Any) -> Any:
    """Return what a proxy stands for; anything else stands for itself."""
    if type(value) is ValueProxy:
        return value.known
    return UNKNOWN if isinstance(value, fx.Proxy) else value


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return `value` with all its tensors changed, in containers of any depth."""
    if isinstance(value, Tensor):
        return function(value)
    items = items_of(value)
    if items is None:
        return value
    return made_like(value, {key: map_tensors(each, function) for key, each in items.items()})


def _holds_unknown(value: Any) -> bool:
    found = False

    def look(each: Any) -> Any:
        nonlocal found
        found = found or each is UNKNOWN
        return each

    map_aggregate(value, look)
    return found


class ValueProxy(fx.Proxy):
    """A proxy that answers Python's questions by what it stands for.

    Sizes stay nodes where they are computed with; `tracer.decide` notes what Python was told.
    """

    tracer: Any

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
                return self.tracer.fact(self, name, fact)
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
        return int(self.tracer.decide_length(self))

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.known, Mapping):
            return item in self.known
        return any(bool(each == item) for each in iter(self))

    def __bool__(self) -> bool:
        if self.known is not UNKNOWN and not isinstance(self.known, Tensor):
            is_sized = isinstance(self.known, (tuple, list, Mapping))
            return len(self) > 0 if is_sized else bool(self.tracer.decide(self))
        return bool(self.tracer.to_bool(self))

    def __index__(self) -> int:
        return operator.index(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __str__(self) -> str:
        is_number = isinstance(self.known, (int, float, tuple))
        return str(self.tracer.formatted(self)) if is_number else repr(self)

    def __format__(self, specification: str) -> str:
        is_number = isinstance(self.known, (int, float))
        if is_number:
            return str(self.tracer.formatted(self, specification))
        return format(str(self), specification)

    def __eq__(self, other: Any) -> Any:
        return False if self._is_cache_key(other) else self._call(operator.eq, other)

    def __ne__(self, other: Any) -> Any:
        return True if self._is_cache_key(other) else self._call(operator.ne, other)

    def _is_cache_key(self, other: Any) -> bool:
        """Say whether a whole shape is compared with one that is kept: of what depends on it.

        The two count as different, so that all is made anew, as it is right for any shape. Where
        that is no cache, the proof on the example sees the difference.
        """
        is_whole = isinstance(self.known, torch.Size) and self.node.target in (getattr, "size")
        is_left_behind = type(other) is ValueProxy and other.tracer is not self.tracer
        is_shape = type(other) in (tuple, torch.Size) and len(other) == len(self.known)
        return is_whole and (is_left_behind or is_shape or other is None)

    def __hash__(self) -> int:
        if isinstance(self.known, (int, float, tuple)):
            # No decision: as a key of a cache it would outlive the trace, with all that it holds.
            raise TypeError("unhashable: a size in tracing")
        return id(self)

    def _number(self) -> Any:
        if isinstance(self.known, (int, float)):
            return self.tracer.decide(self)
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

    def __setitem__(self, index: Any, value: Any) -> None:
        self._call(operator.setitem, index, value)

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
            told = [self.tracer.decide(x) if type(x) is ValueProxy else x for x in plain]
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
