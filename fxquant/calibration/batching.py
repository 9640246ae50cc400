"""Batches of calls, cut, counted and joined by their samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.streaming.running import Arguments


def take_samples(
    batches: Iterable[Arguments], max_samples: int, unbatched_rank: int | None = None
) -> list[Arguments]:
    """Return the first batches, until they hold `max_samples`; the last one is cut."""
    taken, room = [], max_samples
    for batch in batches:
        if num_samples(batch, unbatched_rank) == 0:
            continue
        taken.append(cut(batch, room, unbatched_rank))
        room -= num_samples(batch, unbatched_rank)
        if room <= 0:
            break
    return taken


def in_batches_of(
    batches: Sequence[Arguments], size: int, unbatched_rank: int | None = None
) -> list[Arguments]:
    """Return the same samples in batches of `size`.

    Only where one tensor is all that differs from batch to batch, and its samples have one shape;
    else `batches` as they are.
    """
    if not batches or not all(_is_uniform(batches[0], batch) for batch in batches):
        return list(batches)
    position = next(i for i, each in enumerate(batches[0]) if isinstance(each, Tensor))
    if batches[0][position].dim() in (1, unbatched_rank):
        return list(batches)
    parts = itertools.chain.from_iterable(torch.split(batch[position], size) for batch in batches)
    grouped: list[list[Tensor]] = [[]]
    for part in parts:
        if sum(map(len, grouped[-1])) + len(part) > size:
            grouped.append([])
        grouped[-1].append(part)
    rest = batches[0]
    return [
        (*rest[:position], group[0] if len(group) == 1 else torch.cat(group), *rest[position + 1 :])
        for group in grouped
        if group
    ]


def _is_uniform(first: Arguments, batch: Arguments) -> bool:
    """Say whether a batch is like the first but for the values of its one tensor."""
    if sum(isinstance(each, Tensor) for each in batch) != 1:
        return False
    for one, other in zip(first, batch, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.dim() == 0 or one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
                return False
        elif one is not other and not (_is_plain(one) and _is_plain(other) and one == other):
            return False
    return True


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def num_samples(inputs: Arguments, unbatched_rank: int | None = None) -> int:
    """Return the length of the first tensor or list of tensors.

    1 where there is none, or the tensor has no batch axis.
    """
    first = next((found for each in inputs if (found := _samples(each)) is not None), None)
    if first is None or (isinstance(first, Tensor) and first.dim() in (0, unbatched_rank)):
        return 1
    return len(first)


def cut(inputs: Arguments, room: int, unbatched_rank: int | None = None) -> Arguments:
    """Return the first `room` samples of all that has as many as the first tensor or list."""
    size = num_samples(inputs, unbatched_rank)
    if size <= room:
        return inputs
    return tuple(
        each[:room] if _has_samples(each) and len(each) == size else each for each in inputs
    )


def _samples(value: Any) -> Tensor | list[Tensor] | tuple[Tensor, ...] | None:
    """Return what of an argument has as many items as there are samples; None if nothing has.

    A tensor, the first one of a list or dict, or a list of samples: of images that differ in size.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or not value:
        return None
    tensors = all(isinstance(each, Tensor) for each in value)
    return value if tensors and value[0].dim() <= 3 else _samples(value[0])


def _has_samples(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim() > 0)
