"""Round a trained CIFAR ResNet-20 by AdaRound at several bits and seeds, and print the table.

python -m benchmarks.rounding.adaround_accuracy --data cifar10.npz --weights resnet20.safetensors
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

import fxquant
from benchmarks.judging.comparison import Result, compare
from benchmarks.ranges.cifar10 import load_model, normalize
from benchmarks.running.allocator import keep_memory

BITS: tuple[tuple[int, int | None], ...] = (
    (4, None), (3, None), (2, None), (4, 8), (4, 4), (3, 8), (2, 8)
)  # fmt: skip


def recipes(bits: tuple[int, int | None], seeds: int) -> list[tuple[str, str, fxquant.Recipe]]:
    """Return nearest rounding in both recipes' ranges, and AdaRound with each seed."""
    weights, activations = bits
    name = f"{weights}/{activations or 32}"
    nearest = fxquant.Recipe.minmax(weight_bits=weights, activation_bits=activations)
    found = [(name, "nearest, min-max", nearest)]
    for seed in range(seeds):
        recipe = fxquant.Recipe.adaround(
            weight_bits=weights, activation_bits=activations, seed=seed
        )
        if seed == 0:
            found.append(
                (
                    name,
                    "nearest, same ranges",
                    fxquant.Recipe(weights=recipe.weights, activations=recipe.activations),
                )
            )
        found.append((name, "AdaRound", recipe))
    return found


def rows(results: list[Result]) -> list[list[str]]:
    """Return a row for each bits and method, seeds taken together."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.bits, each.method), []).append(each)
    table = []
    for (bits, method), group in groups.items():
        top1 = [each.top1 for each in group]
        spread = f"± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        table.append(
            [
                bits,
                method,
                f"{statistics.mean(top1):.1f} {spread}",
                f"{statistics.mean(each.agreement for each in group):.1f}",
                f"{statistics.mean(each.logit_sqnr for each in group):.1f}",
                f"{statistics.mean(each.seconds for each in group):.1f}",
            ]
        )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=1024, help="number of images")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    keep_memory()
    data = np.load(options.data)
    results: list[Result] = []
    for bits in BITS:
        found = compare(
            load_model(options.weights),
            recipes(bits, options.seeds),
            normalize(data["calib_x"][: options.calibration]),
            normalize(data["test_x"]),
            torch.from_numpy(data["test_y"]).long(),
            batch_size=64,
        )
        results += found if not results else found[1:]
    columns = ["bits W/A", "method", "top-1 %", "agrees %", "logits dB", "seconds"]
    print(tabulate(rows(results), columns, disable_numparse=True))


if __name__ == "__main__":
    main()
