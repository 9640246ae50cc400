"""What Python and PyTorch answer differently while a model is traced with values.

`isinstance(x, torch.Tensor)` is True of a proxy that stands for one. And functions and methods that
PyTorch would run at once, since none of their tensors is a proxy, are recorded if a size is one:
`torch.zeros(n, 4)`, `self.pos_embed[:, :n]`, `self.cls_token.expand(n, -1, -1)`.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, get_overridable_functions

from fxquant.capture.recording.proxies import stands_for

ONE_AT_A_TIME = threading.RLock()
"""Tracing patches classes of PyTorch: fx's own tracer, too."""
_CREATE = (
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "range", "tensor", "tril_indices", "triu_indices",
    "zeros", "hann_window", "hamming_window", "blackman_window",
)  # fmt: skip
_METHODS = (
    "broadcast_to", "chunk", "expand", "flip", "narrow", "new_empty", "new_full", "new_ones",
    "new_tensor", "new_zeros", "permute", "repeat", "repeat_interleave", "reshape", "resize_",
    "roll", "select", "split", "tile", "to", "transpose", "tril", "triu", "unflatten", "unfold",
    "view",
)  # fmt: skip
_OPERATORS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: operator.getitem,
    Tensor.__setitem__: operator.setitem,
}


@functools.cache
def recorded_functions() -> frozenset[int]:
    """Return the ids of the functions of `torch` and `torch.nn.functional` to record."""
    overridable = get_overridable_functions()
    created = [getattr(torch, name) for name in _CREATE]
    functions = [*overridable[torch], *overridable[F], *created]
    decomposed = {id(F.multi_head_attention_forward)}
    return frozenset(id(function) for function in functions) - decomposed


@contextlib.contextmanager
def python_of_tracing(with_values: bool) -> Iterator[None]:
    """Let `isinstance` and methods of tensors know proxies; one thread at a time.

    With values, code that asks whether it is compiled hears yes: such code leaves out caches that
    would keep proxies, and looks at values of tensors.
    """
    own = {name: vars(Tensor).get(name) for name in _METHODS}
    original, is_compiling = builtins.isinstance, torch.compiler._is_compiling_flag
    try:
        torch.compiler._is_compiling_flag = with_values or is_compiling
        builtins.isinstance = stands_for
        for name in _METHODS:
            setattr(Tensor, name, _recorded(name, getattr(Tensor, name)))
        with _RecordedIndexing():
            yield
    finally:
        builtins.isinstance = original
        torch.compiler._is_compiling_flag = is_compiling
        for name, method in own.items():
            if method is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


def _recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return `method`, a tensor's, which is recorded where an argument is a proxy."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = _proxy_in((args[1:], kwargs))
        if proxy is None:
            return method(*args, **kwargs)
        return proxy.tracer.create_proxy("call_method", name, args, kwargs)

    return call


class _RecordedIndexing(TorchFunctionMode):
    """Records an index of a tensor that holds a proxy.

    A `Tensor.__getitem__` that is set and deleted again leaves a slot of C's behind: Python takes
    tensors for sequences from then on, and `torch.tensor([tensor, tensor])` fails.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indexing = _OPERATORS.get(func)
        proxy = None if indexing is None else _proxy_in(args[1:])
        if indexing is None or proxy is None:
            return func(*args, **(kwargs or {}))
        return proxy.tracer.create_proxy("call_function", indexing, args, {})


def _proxy_in(value: Any) -> fx.Proxy | None:
    found: list[fx.Proxy] = []

    def look(each: Any) -> Any:
        if isinstance(each, fx.Proxy):
            found.append(each)
        return each

    map_aggregate(value, look)
    return found[0] if found else None
