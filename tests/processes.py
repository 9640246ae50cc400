"""Other processes, for tests of what several do with one folder, or as ranks of one group."""

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch import distributed

_TIMEOUT = 20  # seconds, of the group; all ranks together have twice as many


def forked(function: Callable[[], object]) -> int:
    """Run a function in a copy of this process; return the copy's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch has threads: none is needed
        child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


def in_process(function: Callable[[], object]) -> None:
    """Run a function in a copy of this process, to its end."""
    os.waitpid(forked(function), 0)


def ranks(number: int, function: Callable[[int], object], folder: Path) -> list[Any]:
    """Run a function of the rank in a group of copies of this process; return what each returns.

    Instead, what a rank raises is returned, as text; None of a rank that was killed.
    """
    store = folder / f"store{time.monotonic_ns()}"
    children = [forked(partial(_join, rank, number, store, function)) for rank in range(number)]
    end = time.monotonic() + 2 * _TIMEOUT
    waiting = set(children)
    while waiting and time.monotonic() < end:
        waiting -= {child for child in waiting if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.01)
    for child in waiting:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not waiting, "some ranks hung"
    paths = [Path(f"{store}.{rank}") for rank in range(number)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


def _join(rank: int, number: int, store: Path, function: Callable[[int], object]) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=_TIMEOUT),
    )
    try:
        result = function(rank)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    Path(f"{store}.{rank}").write_bytes(pickle.dumps(result))
