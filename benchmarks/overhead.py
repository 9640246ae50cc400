"""What calibration and fake-quantization cost beside the folded float model, in one run.

    python -m benchmarks.overhead --model resnet50 --batch-size 8

Prints two tables: one activation through each fake-quantize implementation, and the whole model.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torchvision
from tabulate import tabulate
from torch.nn import functional as F

import fxquant
from benchmarks.allocator import keep_memory
from benchmarks.timing import interleaved_medians
from fxquant.affine import Grid
from fxquant.fakequant import FakeQuantize
from fxquant.passes import DropIdentities, FoldBatchNorm


def one_activation(repeats: int) -> str:
    """Return the table for 8×256×56×56 values."""
    x = torch.randn(8, 256, 56, 56)
    scale, zero_point = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)
    module = FakeQuantize(scale, zero_point, Grid.of(8, signed=False), fxquant.TensorSpec(), 0.0)
    with torch.inference_mode():
        seconds = interleaved_medians(
            {
                "ReLU": lambda: F.relu(x),
                "torch.fake_quantize_per_tensor_affine": lambda: (
                    torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
                ),
                "fxquant.fakequant.FakeQuantize": lambda: module(x),
            },
            repeats,
        )
    rows = [[name, f"{value * 1000:.2f}"] for name, value in seconds.items()]
    return tabulate(rows, ["8×256×56×56 values", "ms"], disable_numparse=True)


def whole_model(name: str, batch_size: int, image_size: int, repeats: int) -> str:
    """Return the table for a torchvision model with random weights."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    x = torch.randn(batch_size, 3, image_size, image_size)
    folded = fxquant.trace(model)
    DropIdentities()(folded)
    FoldBatchNorm()(folded)
    prepared = {
        "calibration, min-max": fxquant.prepare(model, "minmax"),
        "calibration, ACIQ": fxquant.prepare(model, "aciq"),
    }
    calibrated = fxquant.calibrate(copy.deepcopy(prepared["calibration, ACIQ"]), [x])
    quantized = fxquant.convert(calibrated)
    models = {"float, folded": folded, **prepared, "fake-quantized, ACIQ 8/8": quantized}
    with torch.inference_mode():
        seconds = interleaved_medians(
            {label: (lambda each=each: each(x)) for label, each in models.items()},  # type: ignore[misc]
            repeats,
        )
    base = seconds["float, folded"]
    rows = [[label, f"{t * 1000:.0f}", f"{t / base:.2f}"] for label, t in seconds.items()]
    return tabulate(rows, [f"{name}, batch {batch_size}", "ms", "ratio"], disable_numparse=True)


def main() -> None:
    """Print both tables."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(one_activation(options.repeats))
    print()
    print(whole_model(options.model, options.batch_size, options.image_size, options.repeats))


if __name__ == "__main__":
    main()
