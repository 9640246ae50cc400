"""What the nodes of a graph are for an example, computed on fake tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate

from fxquant.capture.recording.proxies import UNKNOWN, ValueProxy, known
from fxquant.modules.overrides import why_overridden
from fxquant.numerics.containers import map_leaves

_logger = logging.getLogger("fxquant")
_CHANGING = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior")
_RESHAPING = ("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "resize_")


class Values:
    """What the nodes of a graph are for an example: computed on fake tensors."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.is_computing = False
        self._results: dict[Any, Any] = {}

    def faked(self, value: Any) -> Any:
        """Return a tree with fake tensors in the places of the tensors."""
        return map_leaves(value, self._fake)

    def _fake(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
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
            args[0].known = map_leaves(args[0].known, self._fake)  # others stand for the same
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


def _holds_unknown(value: Any) -> bool:
    found = False

    def look(each: Any) -> Any:
        nonlocal found
        found = found or each is UNKNOWN
        return each

    map_aggregate(value, look)
    return found
