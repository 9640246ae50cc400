"""Work in parts, each with a time limit of its own: what fails or takes longer is one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.running.racing import Dropped, last_words

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """What one part took and gave."""

    part: str
    seconds: float
    result: str
    has_failed: bool = False


@dataclass
class Parts:
    """A folder for the files, the time that is left, and a row for each part so far."""

    folder: Path
    end: float
    """When all has to be done, by `time.perf_counter`."""
    rows: list[Row] = field(default_factory=list)

    def do(self, part: str, max_seconds: float, work: Callable[[float], str]) -> None:
        """Add a row: what `work` returns, given the seconds that it has, or why it was dropped."""
        start = time.perf_counter()
        limit = min(max_seconds, self.end - start)
        has_failed = False
        try:
            if limit < 1:
                raise Dropped("no time left")
            result = work(limit)
        except Dropped as reason:
            result, has_failed = str(reason), True
        self.rows.append(Row(part, time.perf_counter() - start, result, has_failed))
        print(f"{part}: {result}", file=sys.stderr, flush=True)

    def log(self, name: str) -> Path:
        """Return a file for what a command prints."""
        return self.folder / f"{name}.log"


def run_limited(command: Sequence[str], *, max_seconds: float, log: Path) -> None:
    """Run a command in the repository's folder; what it prints goes to `log`.

    Its imports start in that folder.

    Raises:
        Dropped: it fails, crashes, or takes longer than `max_seconds`.
    """
    places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=_ROOT, env=environment, start_new_session=True
        )
    try:
        code = process.wait(max(max_seconds, 0.0))
    except subprocess.TimeoutExpired:
        raise Dropped(f"no end after {max_seconds:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code != 0:
        raise Dropped(last_words(code, log))
