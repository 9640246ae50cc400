"""Exchanges between the ranks of `torch.distributed`, where a group is initialized; else nothing.

Every rank calls these functions in the same order, within `together`. Each begins with what every
rank says of itself: which process it is, what it is about to exchange, and whether it has failed.
So one that fails ends all of them, in step, and ranks that are out of step are an error, no wait.
One that was killed is missed by the others, when their connection to it breaks, and named. Nothing
is started here: `torchrun` and `torch.distributed.init_process_group` do that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from fxquant.errors import RankError
from fxquant.streaming.processes import Process

_logger = logging.getLogger("fxquant")
_is_together: ContextVar[bool] = ContextVar("_is_together", default=False)
_processes: list[Process] = []
"""Of all ranks, as far as they have said."""


def num_ranks() -> int:
    """Return the number of ranks, 1 without a group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Return this process's rank, 0 without a group."""
    return distributed.get_rank() if num_ranks() > 1 else 0


@contextlib.contextmanager
def together(name: str) -> Iterator[None]:
    """Let an error of one rank in the block be a `RankError` of all others, at their next exchange.

    At the end all ranks wait for one another. What is no `Exception`, as Ctrl-C, is not told: the
    others miss this rank when its process has ended.

    Args:
        name: of what is done, for messages.

    Raises:
        RankError: another rank has failed or ended, or does something else.
    """
    if num_ranks() == 1 or _is_together.get():
        yield
        return
    token = _is_together.set(True)
    try:
        yield
        _exchange(f"the end of {name}")
    except RankError:
        raise
    except Exception as error:
        what = f"{name}: {type(error).__name__}: {_first_line(error)}"
        _logger.error(
            "rank %d fails, and tells the others at their next exchange: %s", rank(), what
        )
        with contextlib.suppress(RankError):
            _exchange("", failure=what)
        raise
    finally:
        _is_together.reset(token)


def gather_objects(value: Any, what: str = "objects") -> list[Any]:
    """Return every rank's `value`, in the order of ranks."""
    return [value] if num_ranks() == 1 else _exchange(what, value)


def object_from_first_rank(value: Any, what: str = "an object of rank 0") -> Any:
    """Return rank 0's `value`."""
    return gather_objects(value if rank() == 0 else None, what)[0]


def sum_over_ranks(*tensors: Tensor) -> None:
    """Add up each of `tensors` over the ranks, in place."""
    if num_ranks() > 1:
        _require_dense(*tensors)
        _exchange(f"the sum of {_described(*tensors)}")
        for each in tensors:
            _in_touch(partial(distributed.all_reduce, each))


def copy_from_first_rank(*tensors: Tensor) -> None:
    """Put rank 0's values into `tensors`."""
    copy_from_rank(0, *tensors)


def copy_from_rank(number: int, *tensors: Tensor) -> None:
    """Put one rank's values into `tensors`."""
    if num_ranks() > 1:
        _require_dense(*tensors)
        _exchange(f"a copy of {_described(*tensors)} of rank {number}")
        for each in tensors:
            _in_touch(partial(distributed.broadcast, each, src=number))


def from_all_ranks(tensor: Tensor, axis: int) -> Tensor:
    """Return the slices of all ranks' tensors along an axis, the same on all ranks.

    Ranks take turns: of any few slices in a row each rank has its share.
    """
    if num_ranks() == 1:
        return tensor
    length, others = tensor.shape[axis], (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
    lengths: list[int] = _exchange(f"slices {others} of {tensor.dtype}", length)
    own = tensor.contiguous()
    shapes = [(*others[:axis], each, *others[axis:]) for each in lengths]
    received = tensor.new_empty(max(map(math.prod, shapes)))
    whole = tensor.new_empty(*others[:axis], sum(lengths), *others[axis:])
    turns = torch.cat([(torch.arange(each) + 0.5) / each for each in lengths])
    places = torch.split(turns.argsort(stable=True).argsort().to(tensor.device), lengths)
    _exchange(f"{len(lengths)} times slices {others}")  # memory is there: nothing else can fail
    for number, (shape, place) in enumerate(zip(shapes, places, strict=True)):
        part = own if number == rank() else received[: math.prod(shape)].view(shape)
        _in_touch(partial(distributed.broadcast, part, src=number))
        whole.index_copy_(axis, place, part)
    return whole


def _exchange(what: str, value: Any = None, failure: str = "") -> list[Any]:
    """Return every rank's `value`.

    Raises:
        RankError: another rank has failed, has ended, or exchanges something else.
    """
    said: list[Any] = [None] * num_ranks()
    own = {"process": asdict(Process.this()), "what": what, "value": value, "failure": failure}
    _in_touch(partial(distributed.all_gather_object, said, own))
    _processes[:] = [Process(**each["process"]) for each in said]
    failures = [
        f"rank {number} failed: {each['failure']}"
        for number, each in enumerate(said)
        if each["failure"] and number != rank()
    ]
    if failures:
        raise RankError("; ".join(failures))
    if not failure and len({each["what"] for each in said}) > 1:
        places = (f"rank {number} exchanges {each['what']}" for number, each in enumerate(said))
        raise RankError(
            f"the ranks are out of step: {', '.join(places)}: give all of them the same model and "
            "recipe, and let all make the same calls in the same order"
        )
    return [each["value"] for each in said]


def _in_touch(call: Callable[[], object]) -> None:
    """Make a call of `torch.distributed`, which raises RuntimeError where a connection breaks."""
    try:
        call()
    except RuntimeError as error:
        raise RankError(_who_is_missing(error)) from error


def _who_is_missing(error: RuntimeError) -> str:
    """Say which ranks have ended, as far as can be told here, and what to do."""
    for _ in range(20):  # a process closes its connections a little before it has ended
        ended = [number for number, each in enumerate(_processes) if each.has_ended()]
        if ended:
            names = (f"rank {each} ({_processes[each]})" for each in ended)
            return f"{', '.join(names)} has ended: the others cannot go on; see what it printed"
        time.sleep(0.1)
    other = f"rank {1 - rank()}" if num_ranks() == 2 else "one of the other ranks"
    return (
        f"{other} does not answer: it has ended, or takes longer than the timeout that "
        f"init_process_group was given: see what it printed ({_first_line(error)[:100]}…)"
    )


def _require_dense(*tensors: Tensor) -> None:
    """Raise `ValueError` for tensors with gaps: gloo reads and writes as if there were none."""
    for each in tensors:
        if not each.is_contiguous():
            raise ValueError(f"an exchange of {tuple(each.shape)} with strides {each.stride()}")


def _described(*tensors: Tensor) -> str:
    types = (str(each.dtype).removeprefix("torch.") for each in tensors)
    sizes = (tuple(each.shape) for each in tensors)
    return ", ".join(f"{kind} {size}" for kind, size in zip(types, sizes, strict=True))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
