"""Seconds of each phase, and memory, of large models; one rank beside two.

    python -m benchmarks.rounding.at_scale
    python -m benchmarks.rounding.at_scale --ranks
    python -m benchmarks.rounding.at_scale --linear

Random weights and smooth noise at 224², 4-bit weights and 8-bit activations. Each row is a process
of its own, started with the allocator's usual settings, so that its memory is its own; "beside the
model" is what its peak is above the float model, the images and PyTorch. `--ranks` halves the data
between two processes of one thread each; `--linear` varies layers, images and weights, one at a
time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import distributed, nn
from torch.nn import functional as F

import fxquant
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.running.allocator import SETTINGS
from fxquant.modules.quantized_layer import QuantizedLayer

GIB = 2**30
PHASES = ("prepare", "calibrate", "convert")
LARGE: list[dict[str, Any]] = [
    {"model": "resnet152", "images": 1024, "method": "gram"},
    {"model": "vit_l_16", "images": 64, "method": "gram"},
]
LINEAR: list[dict[str, Any]] = [
    *({"model": f"cifar{depth}", "images": 512} for depth in (20, 56, 110)),
    *({"model": "cifar20", "images": number} for number in (256, 512, 1024, 2048)),
    *({"model": f"wide{width}", "images": 512} for width in (1, 2, 4, 8)),
]


def build(name: str) -> tuple[nn.Module, int]:
    """Return a float model in eval mode, and the side of its images."""
    torch.manual_seed(0)
    if name.startswith("cifar"):
        return CifarResNet(int(name.removeprefix("cifar"))).eval(), 32
    if name.startswith("wide"):
        channels = 32 * int(name.removeprefix("wide"))
        layers = [nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU()]
        for _ in range(8):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers).eval(), 32
    return torchvision.models.get_model(name).eval(), 224


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return seconds by phase, memory in bytes and the calls of layers, of this process."""
    model, side = build(wanted["model"])
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    number = distributed.get_world_size() if distributed.is_initialized() else 1
    torch.manual_seed(rank)
    coarse = torch.randn(wanted["images"] // number, 3, side // 8, side // 8)
    batches = [
        F.interpolate(each, scale_factor=8, mode="bilinear") for each in torch.split(coarse, 16)
    ]
    options = {"method": wanted.get("method", "gram"), "steps": wanted.get("steps", 100)}
    recipe = fxquant.Recipe.adaround(
        weight_bits=4, activation_bits=8, batch_size=16, max_bytes=wanted.get("max_bytes", GIB),
        samples=wanted["images"], **options,
    )  # fmt: skip
    with torch.no_grad():
        model(batches[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    phases = {}
    start = time.perf_counter()
    prepared = fxquant.prepare(model, recipe, example_inputs=batches[0][:8])
    phases["prepare"] = time.perf_counter() - start
    fxquant.calibrate(prepared, batches, progress=False)
    phases["calibrate"] = time.perf_counter() - start - sum(phases.values())
    quantized = fxquant.convert(prepared, progress=False)
    phases["convert"] = time.perf_counter() - start - sum(phases.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    return {
        **phases,
        "peak": peak,
        "beside": peak - before,
        "layers": len(layers),
        "weights": sum(each.weight_integers.numel() for each in layers),
    }


def in_process(wanted: dict[str, Any], threads: int, ranks: int = 1) -> dict[str, Any]:
    """Return what `run` does in a process of its own; of several ranks, what the slowest says."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1048576"  # large tensors go back to the system
    environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "benchmarks.rounding.at_scale", "--one", json.dumps(wanted)]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            if ranks > 1:
                environment["AT_SCALE_RANK"] = f"{rank} {ranks} {Path(folder) / 'store'}"
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{wanted}: a process failed")
    found = [json.loads(output) for output in outputs]
    return max(found, key=lambda each: float(each["convert"]))


def shown(wanted: dict[str, Any], found: dict[str, Any]) -> list[Any]:
    """Return a row of the table."""
    method = wanted.get("method", "gram")
    what = f"{method}, {wanted['steps']} steps" if "steps" in wanted else method
    seconds = [found[phase] for phase in PHASES]
    memory = [found[each] / GIB for each in ("peak", "beside")]
    per_image = 1000 * sum(seconds) / wanted["images"] / found["layers"]
    return [
        wanted["model"], what, wanted["images"], found["layers"], found["weights"] / 1e6,
        *seconds, sum(seconds), *memory, per_image,
    ]  # fmt: skip


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", action="store_true", help="one rank beside two")
    parser.add_argument("--linear", action="store_true", help="cost against size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if place := os.environ.get("AT_SCALE_RANK"):
            rank, number, store = place.split(" ", 2)
            distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(number)
            )
        print(json.dumps(run(options.one)))
        return
    if options.ranks:
        compare_ranks()
        return
    rows = []
    for wanted in LINEAR if options.linear else LARGE:
        rows.append(shown(wanted, in_process(wanted, options.threads)))
        print(rows[-1], flush=True)
    columns = [
        "model", "by", "images", "layers", "weights, M", "prepare, s", "calibrate, s", "convert, s",
        "all, s", "peak, GiB", "beside the model, GiB", "ms an image and layer",
    ]  # fmt: skip
    print(tabulate(rows, columns, floatfmt=".1f" if not options.linear else ".2f"))


def compare_ranks() -> None:
    """Print seconds of one rank and of two, on the same data, one thread each."""
    rows = []
    methods: list[dict[str, Any]] = [{"method": "gram"}, {"method": "adaround", "steps": 200}]
    for method in methods:
        wanted = {"model": "resnet18", "images": 256, **method}
        one, two = (in_process(wanted, 1, ranks) for ranks in (1, 2))
        for each in (one, two):
            each["all"] = sum(each[phase] for phase in PHASES)
        for phase in (*PHASES, "all"):
            ratio = f"{one[phase] / two[phase]:.2f}"
            rows.append([method["method"], phase, one[phase], two[phase], ratio])
        print(rows[-4:], flush=True)
    columns = ["ResNet-18, 256 images", "", "one rank, s", "two, s", "x"]
    print(tabulate(rows, columns, floatfmt=("g", "g", ".1f", ".1f", ".2f")))


if __name__ == "__main__":
    main()
