"""Where the time of a lowered network goes: kernels, what is around them, what the graph adds.

    python -m benchmarks.int8.where_time_goes [--models mobilenet_v2 …] [--batch 1] [--threads 2]

One row a network: its steps; milliseconds of a call when the graph runs call by call and when its
program does; of these the kernels' own, as oneDNN times them (`ONEDNN_VERBOSE`); what is left, in
microseconds a step, and what of it looks whether all is as it was. Then the kernels by
implementation, and the steps that are PyTorch's. Weights are random.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxquant
from benchmarks.networks.int8_networks import NETWORKS, build, images, network
from benchmarks.running.allocator import keep_memory
from fxquant.programs import programs_of
from fxquant.programs.program import Program
from fxquant.programs.steps import Call, Execute, Write

_CALIBRATION_IMAGES = 8
_RUNS = 20  # that oneDNN times
_WARM_UPS = 5


def program_of(model: Any, x: Tensor) -> Program | None:
    """Return the program of a lowered graph for inputs like `x`."""
    programs = programs_of(model)
    return None if programs is None else programs.make(model, [x])


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds that oneDNN spends in each of its implementations, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        sys.stdout.flush()
        kept = os.dup(1)
        with path.open("w") as file:
            os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):  # type: ignore[no-untyped-call]
                for _ in range(_RUNS):
                    run()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        lines = [line.split(",") for line in path.read_text().splitlines()]
    runs = [line for line in lines if line[1:4] == ["v1", "primitive", "exec"]]
    size = len(runs) // _RUNS
    times: defaultdict[str, float] = defaultdict(float)
    for number in range(size):
        same = runs[number::size]
        seconds = statistics.median(float(each[-1]) for each in same)
        times[f"{same[0][5]}, {same[0][6]}"] += seconds
    return dict(times)


def measure(name: str, options: argparse.Namespace) -> tuple[list[Any], list[list[Any]]]:
    """Return the row of a network, and the rows of its kernels and PyTorch's steps."""
    wanted = network(name, options.batch, None)
    model: nn.Module = build(wanted)
    x = images(wanted, wanted.batch, seed=1)
    batch = images(wanted, _CALIBRATION_IMAGES, seed=2)
    quantized = fxquant.quantize(model, [batch], progress=False)
    lowered: Any = fxquant.lower(quantized, x)
    program = program_of(lowered, x)
    if program is None:
        return [name, "no program", *[""] * 6], []
    with torch.inference_mode():
        # Each alone, as its kernels are timed: in turns they find each other's data in the caches.
        seconds = {
            "graph": _median(lambda: lowered.forward(x), options.repeats),
            "program": _median(lambda: lowered(x), options.repeats),
        }
        kernels = kernel_times(lambda: lowered(x))
        guards = _median(program.is_valid)
        called = [
            [f"  PyTorch's: {step}"[:60], f"{_median_in(program, step, x) * 1e6:.0f} µs"]
            for step in program.steps
            if isinstance(step, (Call, Write))
        ]
    count = sum(isinstance(step, (Execute, Call, Write)) for step in program.steps)
    own = sum(kernels.values())
    in_calls = sum(float(row[1].split()[0]) for row in called) / 1000
    rest = (seconds["program"] * 1000 - own - in_calls) / count * 1000
    row = [
        f"{name} {wanted.batch}×{wanted.size}²",
        *(count, f"{seconds['graph'] * 1000:.2f}", f"{seconds['program'] * 1000:.2f}"),
        *(f"{own:.2f}", f"{in_calls:.2f}", f"{rest:.1f}", f"{guards * 1e6 / count:.1f}"),
    ]
    by_time = sorted(kernels.items(), key=lambda pair: -pair[1])
    return row, [*([f"  {each}", f"{ms:.2f} ms"] for each, ms in by_time), *called]


def _median(function: Callable[[], object], repeats: int = 50) -> float:
    times = []
    for _ in range(_WARM_UPS + repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UPS:])


def _median_in(program: Program, wanted: Call | Write, x: Tensor) -> float:
    """Return the seconds of one step where it stands in its program."""
    times = []
    values: list[Any] = list(program._values)
    for _ in range(_RUNS):
        for place, slot in program._inputs:
            assert place == 0
            values[slot] = x
        for step in program.steps:
            start = time.perf_counter()
            step(values)
            if step is wanted:
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, details = [], []
    for name in options.models:
        row, more = measure(name, options)
        rows.append(row)
        details += [[row[0], ""], *more]
    headers = ["network", "steps", "graph, ms", "program, ms", "kernels, ms", "PyTorch's, ms"]
    headers += ["the rest, µs a step", "of it guards"]
    print(tabulate(rows, headers, disable_numparse=True))
    print()
    print(tabulate(details, disable_numparse=True))


if __name__ == "__main__":
    keep_memory()
    main()
