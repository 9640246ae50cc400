"""Batches of samples, which a model is called with: counted, cut and joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.streaming.running import Arguments


@dataclass(frozen=True)
class Batches:
    """What a model is called with, call by call: a batch of samples each.

    >>> calls = Batches([(torch.zeros(4, 3),), (torch.zeros(2, 3),)])
    >>> calls.num_samples, len(calls.of_size(3).arguments), calls.first(5).num_samples
    (6, 2, 5)
    """

    arguments: Sequence[Arguments]
    """Of each call."""
    unbatched_rank: int | None = None
    """The number of axes of an input that is one sample, without a batch axis; None: not known."""

    @classmethod
    def taken(
        cls, calls: Iterable[Arguments], max_samples: int, unbatched_rank: int | None = None
    ) -> Batches:
        """Return the first of `calls`, until they hold `max_samples`; the last one is cut."""
        taken: list[Arguments] = []
        room = max_samples
        for call in calls if room > 0 else ():
            size = _size(call, unbatched_rank)
            if size == 0:
                continue
            taken.append(call if size <= room else _cut(call, size, room))
            room -= size
            if room <= 0:
                break
        return cls(taken, unbatched_rank)

    @property
    def num_samples(self) -> int:
        """The number of samples in all batches."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each batch."""
        return [_size(call, self.unbatched_rank) for call in self.arguments]

    def first(self, max_samples: int) -> Batches:
        """Return the first `max_samples` samples."""
        return Batches.taken(self.arguments, max_samples, self.unbatched_rank)

    def only_of(self, size: int) -> Batches:
        """Return the batches that hold `size` samples."""
        sized = zip(self.arguments, self.sizes, strict=True)
        return Batches([call for call, own in sized if own == size], self.unbatched_rank)

    def of_size(self, size: int) -> Batches:
        """Return the same samples in batches of `size`.

        Only where one tensor is all that differs from batch to batch, and its samples have one
        shape; else the batches as they are.
        """
        batches = self.arguments
        if not batches or not all(_is_uniform(batches[0], batch) for batch in batches):
            return self
        position = next(i for i, each in enumerate(batches[0]) if isinstance(each, Tensor))
        if batches[0][position].dim() in (1, self.unbatched_rank):
            return self
        parts = itertools.chain.from_iterable(
            torch.split(batch[position], size) for batch in batches
        )
        grouped: list[list[Tensor]] = [[]]
        for part in parts:
            if sum(map(len, grouped[-1])) + len(part) > size:
                grouped.append([])
            grouped[-1].append(part)
        before, after = batches[0][:position], batches[0][position + 1 :]
        joined = [group[0] if len(group) == 1 else torch.cat(group) for group in grouped if group]
        return Batches([(*before, each, *after) for each in joined], self.unbatched_rank)


def _size(call: Arguments, unbatched_rank: int | None) -> int:
    """Return the length of the first tensor or list of tensors.

    1 where there is none, or the tensor has no batch axis.
    """
    first = next((found for each in call if (found := _samples(each)) is not None), None)
    if first is None or (isinstance(first, Tensor) and first.dim() in (0, unbatched_rank)):
        return 1
    return len(first)


def _cut(call: Arguments, size: int, room: int) -> Arguments:
    """Return the first `room` samples of all that has `size` of them."""
    return tuple(each[:room] if _has_samples(each) and len(each) == size else each for each in call)


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
