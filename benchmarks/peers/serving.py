"""A contestant's side of a race: get ready, write the outputs down, then run whenever told to.

    python -m benchmarks.peers.torchao_pt2e pt2e --model FILE --inputs FILE --outputs FILE

On the standard output is one JSON object a line: first `{"ready": {"note": "channels_last"}}` or
`{"refused": "cannot capture: …"}`, then `{"seconds": 0.0193}` for each line on the standard input.
All else that a library prints goes to the standard error. Only numpy is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Images = np.ndarray[Any, np.dtype[np.float32]]
"""One batch, (N, 3, H, W)."""
Run = Callable[[Images], Sequence[np.ndarray]]
_WORDS = 90  # characters of a reason


class Refused(Exception):
    """The network cannot be taken; what is said goes into the table."""


@dataclass(frozen=True)
class Task:
    """What a contestant has to do, from the command line."""

    variant: str
    """Which of the ways that its module knows."""
    model: Path
    """A module that was torch.save'd whole, or an ONNX file."""
    calibration: list[Images]
    batches: list[Images]
    """What to return the outputs of; the first one is timed."""
    threads: int
    detector: bool
    """Behind the network's layers come boxes and their suppression."""


@dataclass(frozen=True)
class Ready:
    """A network that can run."""

    run: Run
    note: str = ""
    """What was chosen, if there was a choice."""


def serve(prepare: Callable[[Task], Ready]) -> None:
    """Do what the command line says, until the standard input ends; call it last in the module."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # libraries print
        task, outputs = parse_task()
        try:
            ready = prepare(task)
            save_outputs(outputs, [ready.run(batch) for batch in task.batches])
        except Refused as refused:
            print(json.dumps({"refused": str(refused)}), file=answers, flush=True)
            return
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"refused": f"fails: {brief(error)}"}), file=answers, flush=True)
            return
        print(json.dumps({"ready": {"note": ready.note}}), file=answers, flush=True)
        for _ in sys.stdin:
            ready.run(task.batches[0])  # the others' data is in the caches
            start = time.perf_counter()
            ready.run(task.batches[0])
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def parse_task() -> tuple[Task, Path]:
    """Return the task, and the file for the outputs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="npz: calibration, test")
    parser.add_argument("--outputs", type=Path, required=True, help="npz, written")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--detector", action="store_true")
    options = parser.parse_args()
    with np.load(options.inputs) as inputs:
        calibration = batches_of(inputs["calibration"], options.batch)
        batches = batches_of(inputs["test"], options.batch)
    task = Task(
        options.variant, options.model, calibration, batches, options.threads, options.detector
    )
    return task, options.outputs


def batches_of(images: Images, size: int) -> list[Images]:
    """Return batches of `size` images each, for networks that take no other.

    The last one is filled up with copies of the last image.
    """
    missing = -len(images) % size
    filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    return list(filled.reshape(-1, size, *images.shape[1:]))


def save_outputs(path: Path, outputs: Sequence[Sequence[np.ndarray]]) -> None:
    """Write each output, over all batches, as an array with its number as the name."""
    columns = [np.concatenate(list(each)) for each in zip(*outputs, strict=True)]
    arrays: dict[str, Any] = {str(number): column for number, column in enumerate(columns)}
    np.savez(path, **arrays)


def brief(error: BaseException) -> str:
    """Return the kind of an error and the beginning of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return words if len(words) <= _WORDS else f"{words[: _WORDS - 1].rstrip()}…"


def faster_of(ways: dict[str, Run], batch: Images, repeats: int = 3) -> Ready:
    """Return the way that needs least time for `batch`, and its name as the note."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run(batch)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    best = min(ways, key=lambda name: seconds[name])
    return Ready(ways[best], best)
