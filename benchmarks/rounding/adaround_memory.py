"""Measure AdaRound's memory on ResNet-50 at 224², with and without a cap on what waits.

    python -m benchmarks.rounding.adaround_memory

Each run is a process of its own, started with the allocator's usual settings, so that its peak is
its own. Weights and images are random; few steps, since steps take no memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time

import torch
import torchvision
from tabulate import tabulate

import fxquant
from benchmarks.running.allocator import SETTINGS


def run(images: int, max_bytes: int | None) -> dict[str, float | str]:
    """Return seconds, peak memory and a digest of all weights of one run in this process."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    recipe = fxquant.Recipe.adaround(
        weight_bits=4, activation_bits=8, samples=images, steps=10, max_bytes=max_bytes,
        batch_size=16,
    )  # fmt: skip
    batches = (torch.randn(16, 3, 224, 224) for _ in range(images // 16))
    start = time.perf_counter()
    quantized = fxquant.quantize(model, batches, recipe)
    digest = hashlib.sha256()
    for value in quantized.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return {
        "seconds": time.perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "digest": digest.hexdigest()[:12],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="the cap")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        cap = None if options.one == "none" else int(options.one)
        print(json.dumps(run(options.images, cap)))
        return
    table = []
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1048576"  # large tensors go back to the system
    for bound in (str(int(options.gigabytes * 2**30)), "none"):
        command = [sys.executable, "-m", "benchmarks.rounding.adaround_memory", "--one", bound]
        command += ["--images", str(options.images)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        shown = "no cap" if bound == "none" else f"{int(bound) / 2**30:g} GiB"
        table.append([shown, found["peak"] / 2**30, found["seconds"], found["digest"]])
        print(table[-1], flush=True)
    print(tabulate(table, ["max_bytes", "peak, GiB", "seconds", "weights"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
