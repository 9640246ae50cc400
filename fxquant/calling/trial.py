"""Calls of copies of a model: it stays as it is, and so do PyTorch's random numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.capture.example import Call
from fxquant.modules.copies import copy_module
from fxquant.numerics.containers import map_leaves


def outputs_of(model: nn.Module, calls: Sequence[Call], seed: int | None = 0) -> list[Any]:
    """Return what `model` gives for one call after the other; it is left as it is.

    Args:
        model: what runs is a copy, which shares its parameters.
        calls: copied before each.
        seed: of PyTorch's random numbers; None: as they are. They are left as they are, too.
    """
    return run_calls(copy_to_call(model), calls, seed)


def copy_to_call(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, which shares its parameters with `model`."""
    shared = {id(each): each for each in model.parameters()}
    return copy_module(model, shared).eval()  # copies of torchvision's feature extractors train


def run_calls(model: nn.Module, calls: Sequence[Call], seed: int | None) -> list[Any]:
    """Return what `model` gives for one call after the other; see `outputs_of`."""
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if has_cuda else ()
    outputs = []
    with torch.no_grad(), torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        for call in calls:
            given = detached_copy(call)
            outputs.append(detached_copy(model(*given.args, **given.kwargs)))
    return outputs


def detached_copy(value: Any) -> Any:
    """Return a deep copy of a nest, whose tensors may have been computed with gradients."""
    tensors: dict[int, Any] = {}

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            tensors[id(leaf)] = leaf.detach().clone()
        return leaf

    map_leaves(value, note)
    return copy.deepcopy(value, tensors)
