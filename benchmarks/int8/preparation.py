"""Seconds of each phase from the float model to the first int8 result, beside float forwards.

    python -m benchmarks.int8.preparation
    python -m benchmarks.int8.preparation --models resnet50 --images 512

Random weights, smooth noise. "float" is one forward of all images in the same batches, the mean of
two, before `prepare` and behind `calibrate`; what `calibrate` takes is mostly that. `load` is of
the lowered model's file, in a process of its own, with fxquant imported; `first` is the first
result behind it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxquant
from benchmarks.networks.int8_networks import build, images, network
from benchmarks.running.allocator import keep_memory

MODELS = ("resnet50", "yolov8n_body", "vit_b_16")


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


@torch.no_grad()
def forward(model: nn.Module, batches: tuple[Tensor, ...]) -> None:
    """Run the model on all batches."""
    for batch in batches:
        model(batch)


def measure(name: str, num_images: int, batch_size: int) -> dict[str, float]:
    """Return the seconds of each phase, and of the float forwards."""
    of = network(name, batch_size)
    model = build(of)
    batches = torch.split(images(of, num_images, seed=0), batch_size)
    forward(model, batches[:1])
    clock = Clock()
    forward(model, batches)
    clock.note("float")
    prepared = fxquant.prepare(model, fxquant.Recipe.aciq(), example_inputs=batches[0])
    clock.note("prepare")
    fxquant.calibrate(prepared, batches, progress=False)
    clock.note("calibrate")
    forward(model, batches)
    clock.note("again")
    clock.seconds["float"] = (clock.seconds["float"] + clock.seconds.pop("again")) / 2
    quantized = fxquant.convert(prepared, progress=False)
    clock.note("convert")
    lowered = fxquant.lower(quantized, batches[0][:1])
    clock.note("lower")
    with torch.inference_mode():
        lowered(batches[0][:1])
    clock.note("first call")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.fxq"
        fxquant.save(lowered, path)
        command = [sys.executable, "-m", "benchmarks.int8.preparation", "--load", str(path)]
        command += ["--size", str(of.size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return {**clock.seconds, **json.loads(done.stdout)}


def measure_loading(path: Path, size: int) -> dict[str, float]:
    """Return the seconds of loading a lowered model, and of its first two results."""
    x = torch.randn(1, 3, size, size)
    clock = Clock()
    lowered = fxquant.load(path)
    clock.note("load")
    with torch.inference_mode():
        lowered(x)
        clock.note("first")
        lowered(x)
        clock.note("second")
    return clock.seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    keep_memory()
    if options.load:
        print(json.dumps(measure_loading(options.load, options.size)))
        return
    rows = []
    for name in options.models:
        seconds = measure(name, options.images, options.batch_size)
        whole = sum(seconds[each] for each in ("prepare", "calibrate", "convert", "lower"))
        ratio = seconds["calibrate"] / seconds["float"]
        rows.append([name, *seconds.values(), f"{ratio:.2f}", f"{whole / seconds['float']:.2f}"])
        print(rows[-1], flush=True)
    columns = [*seconds, "calibrate / float", "all / float"]
    print(f"\n{options.images} images in batches of {options.batch_size}, seconds:\n")
    print(tabulate(rows, ["", *columns], floatfmt=".2f"))


if __name__ == "__main__":
    main()
