"""Change one option of AdaRound at a time: the table that its defaults were chosen by.

    python -m benchmarks.rounding.adaround_options --data cifar10.npz --weights resnet20.safetensors

A trained CIFAR ResNet-20, weights only, 1,024 images. Top-1 moves by half a point with the seed;
the logits' SQNR tells more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

import fxquant
from benchmarks.judging.comparison import compare
from benchmarks.ranges.cifar10 import load_model, normalize
from benchmarks.running.allocator import keep_memory

CHANGES: list[dict[str, Any]] = [
    {},
    {"steps": 200},
    {"steps": 3000},
    {"rows": 32},
    {"rows": 512},
    {"learning_rate": 0.03},
    {"learning_rate": 0.3},
    {"regularization": 0.03},
    {"regularization": 1.0},
    {"beta": (20.0, 2.0)},
    {"warm_start": 0.0},
    {"bfloat16": False},
    {"bias_correction": True},
    {"weight_clip_weight": 1.0},
    {"weight_clip_weight": 3.0},
]


def recipe(bits: int, change: dict[str, Any]) -> fxquant.Recipe:
    """Return AdaRound's recipe at `bits`, weights only, with one option changed."""
    return fxquant.Recipe.adaround(weight_bits=bits, activation_bits=None, **change)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    keep_memory()
    data = np.load(options.data)
    calibration, images = normalize(data["calib_x"][:1024]), normalize(data["test_x"])
    labels = torch.from_numpy(data["test_y"]).long()
    model = load_model(options.weights)
    all_bits = (4, 3, 2)
    table = []
    for change in CHANGES:
        chosen = [(f"{bits}/32", "AdaRound", recipe(bits, change)) for bits in all_bits]
        results = compare(model, chosen, calibration, images, labels, batch_size=64)[1:]
        name = ", ".join(f"{key}={value}" for key, value in change.items()) or "defaults"
        seconds = sum(each.seconds for each in results) / len(results)
        cells = [f"{each.top1:.1f}  {each.logit_sqnr:.1f} dB" for each in results]
        table.append([name, *cells, f"{seconds:.1f}"])
    columns = ["changed", *[f"{bits} bits" for bits in all_bits], "seconds"]
    print(tabulate(table, columns, disable_numparse=True))


if __name__ == "__main__":
    main()
