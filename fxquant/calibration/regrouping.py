"""Samples in batches of another size, where the model takes them.

A model may be written for one size (`x.reshape(2, 64)`, `x.squeeze(0)`): then the batches stay as
they came, and one that was cut is left out.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import fx, nn

from fxquant.calling.batching import Batches
from fxquant.capture.naming import find_regions
from fxquant.capture.recording.state import left_as_it_is
from fxquant.modules.copies import copy_module
from fxquant.modules.own import as_own
from fxquant.numerics.containers import tensors_in
from fxquant.streaming.running import Arguments, copied_to, device_of, interpreted


def regrouped(model: nn.Module, batches: Batches, size: int) -> Batches:
    """Return `batches` in batches of `size` samples, if `model` takes more than their own size."""
    if takes_size(model, batches, size):
        return batches.of_size(size)
    return batches.only_of(batches.sizes[0])


def takes_size(model: nn.Module, batches: Batches, size: int) -> bool:
    """Say whether `model` takes `batches` in batches of `size` samples.

    Args:
        model: one graph, or a model with regions; a copy is run at most twice, and nothing is
            observed.
        batches: as the model was called with them.
        size: of those to come; the last may be smaller.
    """
    others = batches.of_size(size)
    sized = zip(others.arguments, others.sizes, strict=True)
    other = next((call for call, found in sized if found != batches.sizes[0]), None)
    return other is None or _are_alike(copy_module(model), batches.arguments[0], other)


def _are_alike(model: nn.Module, own: Arguments, other: Arguments) -> bool:
    """Say whether the model takes `other` as it takes `own`: its outputs have the same ranks."""
    try:
        return _ranks(model, own) == _ranks(model, other)
    except Exception:  # running the caller's code, which may raise anything
        return False


def _ranks(model: nn.Module, arguments: Arguments) -> set[int]:
    return {each.dim() for each in tensors_in(run_unobserved(model, arguments))}


def run_unobserved(model: nn.Module, arguments: Arguments) -> Any:
    """Return what a prepared model returns, which neither observes nor keeps anything."""
    with torch.no_grad(), left_as_it_is(model), contextlib.ExitStack() as stack:
        for gm in find_regions(model).values():
            stack.enter_context(interpreted(gm, _Unobserved(gm)))
        return model.forward(*copied_to(device_of(model), arguments))


class _Unobserved(fx.Interpreter):
    """Runs a graph past its observers."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if as_own(self.fetch_attr(target)).watches:
            return args[0]
        return super().call_module(target, args, kwargs)
