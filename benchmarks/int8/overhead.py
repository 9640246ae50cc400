"""What calibration and fake-quantization cost beside the folded float model, in one run.

    python -m benchmarks.int8.overhead --model resnet50 --batch-size 8
    python -m benchmarks.int8.overhead --model retinanet_resnet50_fpn \
        --batch-size 1 --image-size 512

Prints two tables: one activation through each fake-quantize implementation, and a whole model of
torchvision, whatever kind. A model rounded by AdaRound costs what one with ACIQ's ranges does: only
its integers differ.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import fxquant
from benchmarks.running.allocator import keep_memory
from benchmarks.running.timing import interleaved_medians
from fxquant.capture.naming import find_regions
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid
from fxquant.passes import DropObservers

EVALUATED: dict[str, dict[str, Any]] = {
    "8/8, ACIQ calibrated": {},
    "8/8, ACIQ of every batch": {"activation_dynamic": True},
    "8/8, ACIQ of every batch, report's clip": {
        "activation_dynamic": True,
        "activation_clip": "report",
    },
    "8/8, ACIQ of every batch, per channel": {
        "activation_dynamic": True,
        "activation_per_channel": True,
    },
}


def one_activation(repeats: int) -> str:
    """Return the table for 8×256×56×56 values."""
    x = torch.randn(8, 256, 56, 56)
    scale, zero_point = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)
    affine = Affine(scale, zero_point, Grid.of(8, signed=False))
    module = FakeQuantize(affine, fxquant.TensorSpec(), 0.0)
    with torch.inference_mode():
        seconds = interleaved_medians(
            {
                "ReLU": lambda: F.relu(x),
                "torch.fake_quantize_per_tensor_affine": lambda: (
                    torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
                ),
                "fxquant.modules.fake_quantize.FakeQuantize": lambda: module(x),
            },
            repeats,
        )
    rows = [[name, f"{value * 1000:.2f}"] for name, value in seconds.items()]
    return tabulate(rows, ["8×256×56×56 values", "ms"], disable_numparse=True)


def whole_model(name: str, batch_size: int, image_size: int, repeats: int) -> str:
    """Return the table for a torchvision model with random weights."""
    model = build(name, image_size)
    x: Any = torch.randn(batch_size, 3, image_size, image_size)
    if name in torchvision.models.list_models(torchvision.models.detection):
        x = list(x.sigmoid())
    prepared = {
        "calibration, min-max": fxquant.prepare(model, "minmax"),
        "calibration, ACIQ": fxquant.prepare(model, "aciq"),
    }
    folded = copy.deepcopy(prepared["calibration, ACIQ"])
    for gm in find_regions(folded).values():
        DropObservers()(gm)
    models = {"float, folded": folded, **prepared}
    for label, options in EVALUATED.items():
        recipe = fxquant.Recipe.aciq(**options)
        models[label] = fxquant.quantize(model, [(x,)], recipe, progress=False)
    with torch.inference_mode():
        seconds = interleaved_medians(
            {label: (lambda each=each: each(x)) for label, each in models.items()},  # type: ignore[misc]
            repeats,
        )
    base = seconds["float, folded"]
    rows = [[label, f"{t * 1000:.0f}", f"{t / base:.2f}"] for label, t in seconds.items()]
    return tabulate(rows, [f"{name}, batch {batch_size}", "ms", "ratio"], disable_numparse=True)


def build(name: str, image_size: int) -> nn.Module:
    """Return the model with random weights; a detector works at the size of its images."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(torchvision.models.segmentation):
        options["weights_backbone"] = None
    if name in torchvision.models.list_models(torchvision.models.detection):
        options["weights_backbone"] = None
        if "ssd" not in name:  # which have sizes of their own
            options |= {"min_size": image_size, "max_size": image_size}
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model.eval()


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
