"""Images and videos cut into windows, and put together again: calls that stand in graphs.

The shifted windows of Swin Transformers, in two dimensions or three. Sizes that are no multiple of
the window's are padded at the end; along an axis that fits into one window nothing is shifted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.stored_names import stored_as

_ELSEWHERE = -100.0
"""Added to the score of a position that the shift brought in from the other side."""


@stored_as("partition_windows")
def partition_windows(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return (N, *sizes, C) as (N, windows, positions, C), shifted.

    >>> partition_windows(torch.arange(6.0).reshape(1, 2, 3, 1), [2, 2], [0, 1]).squeeze(-1)
    tensor([[[1., 2., 4., 5.],
             [0., 0., 0., 3.]]])
    """
    sizes, padded, shift = _layout(x, window, shift)
    ends = [end for size, whole in zip(sizes, padded, strict=True) for end in (whole - size, 0)]
    x = F.pad(x, (0, 0, *reversed(ends)))
    return _cut(_roll(x, [-each for each in shift]), padded, window)


@stored_as("merge_windows")
def merge_windows(
    windows: Tensor, like: Tensor, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """Return what `partition_windows` made of a tensor of the shape of `like` as it was."""
    sizes, padded, shift = _layout(like, window, shift)
    counts = [size // length for size, length in zip(padded, window, strict=True)]
    rank, num_samples, num_channels = len(sizes), windows.shape[0], windows.shape[-1]
    x = windows.reshape(num_samples, *counts, *window, num_channels)
    order = [axis for each in range(rank) for axis in (1 + each, 1 + rank + each)]
    x = x.permute(0, *order, -1).reshape(num_samples, *padded, num_channels)
    x = _roll(x, shift)
    for axis, size in enumerate(sizes, 1):
        x = x.narrow(axis, 0, size)
    return x.contiguous()


@stored_as("window_mask")
def window_mask(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Return what to add to scores so that no position sees what was no neighbour of its.

    Args:
        x: (N, *sizes, C).
        window: sizes of a window.
        shift: by how much they are shifted.

    Returns:
        (windows, 1, positions, positions).
    """
    _, padded, shift = _layout(x, window, shift)
    region = torch.zeros((), dtype=torch.long, device=x.device)
    for size, length, moved in zip(padded, window, shift, strict=True):
        position = torch.arange(size, device=x.device)
        part = (position >= size - length).long() + (position >= size - moved).long()
        region = region[..., None] * 3 + part
    region = _cut(region[None, ..., None], padded, window)[0, :, :, 0]  # (windows, positions)
    is_elsewhere = region[:, None, :] != region[:, :, None]
    return (is_elsewhere.to(x.dtype) * _ELSEWHERE)[:, None]


def _layout(
    x: Tensor, window: Sequence[int], shift: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Return the sizes of `x`, those of it padded, and the shifts that are made."""
    sizes = list(x.shape[1:-1])
    padded = [-(-size // length) * length for size, length in zip(sizes, window, strict=True)]
    moved = zip(padded, window, shift, strict=True)
    return sizes, padded, [0 if size <= length else each for size, length, each in moved]


def _roll(x: Tensor, shift: Sequence[int]) -> Tensor:
    return torch.roll(x, list(shift), list(range(1, 1 + len(shift)))) if any(shift) else x


def _cut(x: Tensor, padded: Sequence[int], window: Sequence[int]) -> Tensor:
    """Return (N, *padded, C) as (N, windows, positions, C)."""
    rank = len(padded)
    split = [
        part
        for size, length in zip(padded, window, strict=True)
        for part in (size // length, length)
    ]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    counts, lengths = range(1, 1 + 2 * rank, 2), range(2, 2 + 2 * rank, 2)
    x = x.permute(0, *counts, *lengths, -1)
    return x.flatten(1 + rank, 2 * rank).flatten(1, rank)
