"""Contestants in processes of their own, timed in turns.

Each gets ready while no other one runs. Then they take turns: a run to warm up and a timed one,
until each has had so many.
"""

from __future__ import annotations

import json
import math
import os
import select
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from benchmarks.running.allocator import SETTINGS

_ROOT = Path(__file__).parents[2]
_AGREE = 0.05
_LAST_WORDS = 300  # characters of a log


class Dropped(Exception):
    """The contestant is out; what is said goes into the table."""


class Contestant:
    """A process that speaks `benchmarks.peers.serving`.

    Args:
        command: the interpreter and its arguments.
        threads: of OpenMP.
        log: a file for what it prints.
        max_seconds: to get ready in, and for each turn.
    """

    def __init__(
        self, command: Sequence[str], *, threads: int, log: Path, max_seconds: float
    ) -> None:
        self.log, self.max_seconds = log, max_seconds
        environment = {
            **os.environ, **SETTINGS, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": str(threads)
        }  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment
            )

    def get_ready(self) -> str:
        """Wait until it can run; return what it chose.

        Raises:
            Dropped: it cannot.
        """
        answer = self._answer()
        if "refused" in answer:
            raise Dropped(answer["refused"])
        return str(answer["ready"]["note"])

    def take_turn(self) -> float:
        """Return the seconds of one run.

        Raises:
            Dropped: it broke down.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"run\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Dropped(last_words(self.process.wait(), self.log)) from None
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], self.max_seconds)
        if not readable:
            raise Dropped(f"no answer after {self.max_seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Dropped(last_words(self.process.wait(), self.log))
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def last_words(code: int, log: Path) -> str:
    """Return why a process ended with that exit status: by what signal, or the log's last line."""
    if code < 0:
        return f"crashes: signal {-code}"
    words = log.read_text(errors="replace").strip().splitlines()
    return f"fails: {words[-1][:_LAST_WORDS]}" if words else f"fails: exit status {code}"


def race(contestants: dict[str, Contestant], repeats: int) -> dict[str, float | Dropped]:
    """Return the median seconds of each, in turns; or why it dropped out on the way."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    dropped: dict[str, Dropped] = {}
    for _ in tqdm(range(repeats), "rounds", disable=None):
        for name, contestant in contestants.items():
            if name in dropped:
                continue
            try:
                seconds[name].append(contestant.take_turn())
            except Dropped as reason:
                dropped[name] = reason
            time.sleep(0.01)  # threads of OpenMP spin for some milliseconds after their work
    return {name: dropped.get(name) or statistics.median(seconds[name]) for name in contestants}


def reproduced(
    contestants: dict[str, Contestant], repeats: int, most_races: int = 5
) -> tuple[dict[str, float | Dropped], dict[str, float]]:
    """Return the seconds of each that two races agree on, and by how much those two differ.

    What disturbs a race only makes it longer: the two shortest medians count, and they agree if
    they are within 5 % of each other. Who has no such two runs again, up to `most_races` times.
    """
    medians: dict[str, list[float]] = {name: [] for name in contestants}
    result: dict[str, float | Dropped] = {}
    differences = dict.fromkeys(contestants, math.inf)
    for _ in range(most_races):
        left = {
            name: each
            for name, each in contestants.items()
            if differences[name] > _AGREE and not isinstance(result.get(name), Dropped)
        }
        if not left:
            break
        for name, seconds in race(left, repeats).items():
            result[name] = seconds
            if isinstance(seconds, Dropped):
                continue
            medians[name] = sorted([*medians[name], seconds])
            if len(medians[name]) > 1:
                first, second = medians[name][:2]
                differences[name] = second / first - 1
            result[name] = medians[name][0]
    return result, {name: each for name, each in differences.items() if each > _AGREE}
