"""Seconds against decibels of every way to learn a rounding, at several numbers of steps.

    python -m benchmarks.rounding.curve
    python -m benchmarks.rounding.curve --models resnet18 --images 256 --steps 50 200 1000

4-bit weights, 8-bit activations; random weights and statistics, smooth noise at 224². The decibels
are the outputs' SQNR on 32 images that nothing was learned from. Seconds are of `convert`: what
`prepare` and `calibrate` take is the same for all.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import fxquant
from benchmarks.capture.torchvision_models import randomize
from benchmarks.judging.comparison import predict
from benchmarks.networks.int8_networks import build, images, network
from benchmarks.running.allocator import keep_memory
from fxquant.numerics.decibels import sqnr
from fxquant.recipe import FREE_BLOCKS

VIT_S = "vit_s_16"
MODELS = ("resnet18", "mobilenet_v2", VIT_S)
WAYS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "Gram matrix": {"method": "gram"},
    "AdaRound": {"method": "adaround"},
    "AdaQuant": {"method": "adaquant"},
    "blocks, AdaQuant": FREE_BLOCKS,
}
BY_STEPS = ("AdaRound", "AdaQuant", "blocks, AdaQuant")


def build_one(name: str) -> nn.Module:
    """Return a float network in eval mode."""
    if name != VIT_S:
        return build(network(name, 1))
    torch.manual_seed(0)
    return randomize(VisionTransformer(224, 16, 12, 6, 384, 1536)).eval()


def recipe(way: str, steps: int | None) -> fxquant.Recipe:
    """Return the recipe of a way to round."""
    if way == "nearest":
        return replace(fxquant.Recipe.adaround(weight_bits=4), reconstruction=None)
    options = {**WAYS[way], **({} if steps is None else {"steps": steps})}
    return fxquant.Recipe.adaround(weight_bits=4, activation_bits=8, **options)


def measure(
    model: nn.Module, batches: tuple[Tensor, ...], unseen: Tensor, made: fxquant.Recipe
) -> tuple[float, float]:
    """Return the seconds of `convert`, and the SQNR of what it returns on unseen images."""
    prepared = fxquant.prepare(model, made, example_inputs=batches[0][:8])
    fxquant.calibrate(prepared, batches, progress=False)
    start = time.perf_counter()
    quantized = fxquant.convert(prepared, progress=False)
    seconds = time.perf_counter() - start
    return seconds, sqnr(predict(model, unseen), predict(quantized, unseen))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800])
    options = parser.parse_args()
    keep_memory()
    rows: dict[tuple[str, int | None], list[Any]] = {}
    for name in options.models:
        model = build_one(name)
        of = network("resnet18", 1)  # for the size of its images
        batches = torch.split(images(of, options.images, seed=0), 32)
        unseen = images(of, 32, seed=1)
        measure(model, (batches[0][:4],), unseen[:4], recipe("AdaRound", 2))  # warm up
        for way in WAYS:
            for steps in options.steps if way in BY_STEPS else [None]:
                seconds, found = measure(model, batches, unseen, recipe(way, steps))
                row = rows.setdefault((way, steps), [way, steps])
                row += [seconds, found]
                print(name, row[0], row[1], f"{seconds:.1f} s, {found:.1f} dB", flush=True)
    columns = [f"{name}, {unit}" for name in options.models for unit in ("s", "dB")]
    print(f"\n{options.images} images:\n")
    print(tabulate(rows.values(), ["", "steps", *columns], floatfmt=".1f"))


if __name__ == "__main__":
    main()
