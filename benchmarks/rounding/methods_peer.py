"""Quantize a CIFAR ResNet-20 by AIMET's AdaRound and by ours and beyond, in one run.

    python -m benchmarks.rounding.methods_peer --data cifar10.npz \
        --weights cifar10_resnet20.safetensors

Rows are methods, columns bits of weights and activations; cells hold top-1 in percent and seconds
from the float network to the quantized one. Same images and steps a layer, or block; AIMET lives in
an environment of its own (`benchmarks.rounding.adaround_speed`), with its own choice of ranges.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.judging.comparison import compare
from benchmarks.methods import METHODS, UNIFORM
from benchmarks.ranges.cifar10 import load_model, normalize
from benchmarks.rounding.adaround_speed import peer_python, run_peer
from benchmarks.running.allocator import keep_memory

HERE = Path(__file__).parents[1]
OURS = ("AdaRound", "AdaRound, batch norms tuned", "Gram matrix", "AdaQuant", "blocks, QDrop")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=1024, help="number of images")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--columns", nargs="+", default=["4/4", "3/32", "2/4"])
    parser.add_argument("--peer", type=Path, default=HERE / ".cache" / "aimet", help="its venv")
    options = parser.parse_args()
    keep_memory()
    data = np.load(options.data)
    model = load_model(options.weights)
    calibration = normalize(data["calib_x"][: options.calibration])
    images, labels = normalize(data["test_x"]), torch.from_numpy(data["test_y"]).long()
    cells: dict[tuple[str, str], str] = {}
    for column in options.columns:
        weights, activations = UNIFORM[column]
        given = {"bits": weights, "steps": options.steps}
        if activations is not None:
            given["activation_bits"] = activations
        test = {"images": images, "labels": labels}
        result = run_peer(peer_python(options.peer), model, calibration, test, **given)
        cells["AIMET, AdaRound", column] = f"{result['top1']:.1f}  {result['seconds']:.0f} s"
        recipes = [
            (column, name, METHODS[name](
                weight_bits=weights, activation_bits=activations, steps=options.steps
            ))
            for name in OURS
        ]  # fmt: skip
        for each in compare(model, recipes, calibration, images, labels, batch_size=64)[1:]:
            cells[each.method, column] = f"{each.top1:.1f}  {each.seconds:.0f} s"
    rows = [
        [name, *[cells[name, column] for column in options.columns]]
        for name in ("AIMET, AdaRound", *OURS)
    ]
    print(tabulate(rows, ["top-1 %, seconds", *options.columns], disable_numparse=True))


if __name__ == "__main__":
    main()
