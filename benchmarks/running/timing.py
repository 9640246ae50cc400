"""Medians of interleaved repeats: both sides of a ratio see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from tqdm import tqdm


def interleaved_medians(
    contestants: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Return the median seconds of each contestant, run in turns after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in tqdm(range(repeats + 1), "repeats", disable=None):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            if run > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
