"""A PyTorch module as a function of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.serving import Images, Run


def as_run(
    model: Callable[[Tensor], Any], memory_format: torch.memory_format = torch.contiguous_format
) -> Run:
    """Return what calls `model` on a batch laid out by `memory_format`."""

    def run(images: Images) -> list[np.ndarray]:
        with torch.no_grad():
            return [each.numpy() for each in tensors(model(as_tensor(images, memory_format)))]

    return run


def as_tensor(images: Images, memory_format: torch.memory_format) -> Tensor:
    """Return a batch as a tensor; without a copy where it is laid out so already."""
    return torch.from_numpy(images).contiguous(memory_format=memory_format)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tuple, in order, or the one."""
    if isinstance(output, Tensor):
        yield output
    else:
        for each in output:
            yield from tensors(each)
