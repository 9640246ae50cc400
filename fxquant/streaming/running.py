"""Running a model on what it is called with: batch by batch, or node by node."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxquant.numerics.containers import items_of, made_like, map_leaves

Arguments = tuple[Any, ...]
_OF_ANY_LAYOUT = ("torch", "torchvision", "fxquant", "_operator", "builtins", "math")


@contextlib.contextmanager
def interpreted(gm: fx.GraphModule, interpreter: fx.Interpreter) -> Iterator[None]:
    """Let calls of `gm` go through `interpreter`, which may look at each node's result."""

    @functools.wraps(gm.forward)  # whoever asks for its arguments finds them
    def run_through(*args: Any, **kwargs: Any) -> Any:
        return _writable(interpreter.run(*positional(gm, args, kwargs)))

    gm.forward = run_through
    try:
        yield
    finally:
        del gm.forward


def _writable(value: Any) -> Any:
    """Return a result with lists and dicts in the places of those of fx, which nobody can change.

    As the generated code returns it.
    """
    items = items_of(value)
    if items is None:
        return value
    plain = {key: _writable(each) for key, each in items.items()}
    if isinstance(value, immutable_list):
        return list(plain.values())
    return plain if isinstance(value, immutable_dict) else made_like(value, plain)


def positional(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return what a call gives to the placeholders, defaults filled in."""
    rest = gm.graph.find_nodes(op="placeholder")[len(args) :]
    named = [kwargs.get(str(node.target), *node.args[:1]) for node in rest]
    return [*args, *named]


def run(model: nn.Module, batches: Iterable[Arguments]) -> Iterator[Any]:
    """Yield what `model` returns for each batch, on its own device, without gradients."""
    device = device_of(model)
    for batch in batches:
        with torch.no_grad():
            yield model(*copied_to(device, batch))


def copied_to(device: torch.device | str, value: Any) -> Any:
    """Return copies of all tensors in `value` on `device`: a model may write to its inputs."""
    return map_leaves(
        value, lambda each: each.to(device, copy=True) if isinstance(each, Tensor) else each
    )


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer is, the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def laid_out_for(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of a call whose tensors may have channels last in memory.

    `view` fails on such tensors, and code that is not PyTorch's may: they get them in rows.
    """
    named = type(function) if isinstance(function, nn.Module) else function
    name = getattr(named, "__name__", "").partition(".")[0]  # an operator is a "view.default"
    package = (getattr(named, "__module__", None) or "torch").partition(".")[0]
    if name not in ("view", "view_as") and package in _OF_ANY_LAYOUT:
        return args, kwargs
    laid_out: tuple[Any, Any] = map_leaves((args, kwargs), _in_rows)
    return laid_out


def _in_rows(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
