"""Sums over the ranks of `torch.distributed`, where a group is initialized; else nothing happens.

Every rank calls these functions in the same order. Nothing is started here: `torchrun` and
`torch.distributed.init_process_group` do that.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed


def num_ranks() -> int:
    """Return the number of ranks, 1 without a group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Return this process's rank, 0 without a group."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up `tensor` over the ranks, in place, and return it."""
    if num_ranks() > 1:
        distributed.all_reduce(tensor)
    return tensor


def copy_from_first_rank(tensor: Tensor) -> Tensor:
    """Put rank 0's values into `tensor` and return it."""
    if num_ranks() > 1:
        distributed.broadcast(tensor, src=0)
    return tensor


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value`, in the order of ranks."""
    if num_ranks() == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(gathered, value)
    return gathered


def object_from_first_rank(value: Any) -> Any:
    """Return rank 0's `value`."""
    if num_ranks() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
