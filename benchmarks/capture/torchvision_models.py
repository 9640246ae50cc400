"""Quantize torchvision's classification, segmentation and video models, random weights, at 8/8.

    python -m benchmarks.capture.torchvision_models [--match "resnet*"]

Each goes through prepare, one calibration batch and convert; the table lists seconds, layers, batch
norms left, and the SQNR of the output against the float model's on the calibration batch. Detection
and optical flow: `benchmarks.capture.torchvision_detection`.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import time
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, fx, nn
from tqdm import tqdm

import fxquant
from fxquant.graph.operations import is_batchnorm
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr

_VIDEO_SIZES = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "s3d": (16, 224)}
_IMAGE_SIZES = {"inception_v3": 299}


def model_names() -> list[str]:
    """Return the names of all classification, segmentation and video models."""
    modules = (
        torchvision.models,
        torchvision.models.segmentation,
        torchvision.models.video,
    )
    return [
        name
        for module in modules
        for name in torchvision.models.list_models(module)
        if not name.startswith("quantized_")
    ]


def build(name: str) -> nn.Module:
    """Return the model with random weights: no zero heads, no batch-norm statistics of 0 and 1."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(torchvision.models.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model: nn.Module = torchvision.models.get_model(name, **options)
    return randomize(model).eval()


def randomize(model: nn.Module) -> nn.Module:
    """Return `model` without zero heads and without batch-norm statistics of 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # as in ViT
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def example(name: str, size: int | None = None) -> Tensor:
    """Return one batch of noise of the size that the model takes."""
    if name in torchvision.models.list_models(torchvision.models.video):
        frames, side = _VIDEO_SIZES.get(name, (8, 112))
        if name.startswith("swin3d"):
            frames, side = 8, 112
        return torch.randn(1, 3, frames, side, side)
    side = size or _IMAGE_SIZES.get(name, 224)
    return torch.randn(1, 3, side, side)


def first_tensor(output: Any) -> Tensor:
    """Return the main tensor of a model's output."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def quantize_one(name: str) -> list[object]:
    """Return the table's row for one model."""
    model, x = build(name), example(name)
    start = time.perf_counter()
    prepared = fxquant.prepare(model)
    prepare_seconds = time.perf_counter() - start
    fxquant.calibrate(prepared, [x], progress=False)
    quantized = fxquant.convert(prepared)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        expected, actual = first_tensor(model(x)), first_tensor(quantized(x))
    assert torch.isfinite(actual).all(), f"{name}: the output is not finite"
    assert isinstance(quantized, fx.GraphModule)
    norms = sum(bool(is_batchnorm(quantized, node)) for node in quantized.graph.nodes)
    layers = sum(isinstance(module, QuantizedLayer) for module in quantized.modules())
    cells = [f"{prepare_seconds:.1f}", f"{seconds:.1f}", layers, norms]
    return [name, *cells, f"{sqnr(expected, actual):.1f}"]


def main() -> None:
    """Print the table; exit with an error if a model failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--match", default="*", help="glob on model names")
    options = parser.parse_args()
    rows, failed = [], []
    for name in tqdm(fnmatch.filter(model_names(), options.match), disable=None):
        try:
            rows.append(quantize_one(name))
        except Exception as error:
            failed.append([name, f"{type(error).__name__}: {str(error).splitlines()[0]}"])
        gc.collect()
    columns = ["model", "prepare s", "in all s", "layers", "batch norms left", "output dB"]
    print(tabulate(rows, columns, disable_numparse=True))
    if failed:
        print(tabulate(failed, ["failed", "why"]))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
