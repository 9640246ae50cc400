"""Quantize a network on a device and write down how long each step took.

    python -m benchmarks.rounding.on_device adaround --device cuda --model MODEL.pt \
        --images IMAGES.pt --steps 200 --out OUT.json

The files are what `benchmarks.peers.aimet_adaround` reads too: a module that was torch.save'd
whole, and a tensor of images. Reading them, a first small run and the comparison are not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.deploy.tensorrt_rules import check
from fxquant.numerics.decibels import sqnr

LEARNED: dict[str, dict[str, Any]] = {
    "adaround": {},
    "gram": {"method": "gram"},
    "adaquant": {"method": "adaquant"},
    "blocks": {"blocks": True, "activation_bits": 8},
}
RECIPES = ("aciq", *LEARNED, "tensorrt")
_BATCH = 32
_JUDGED_IMAGES = 32


@dataclass
class Result:
    """Seconds of each step, and what came out."""

    recipe: str
    device: str
    prepare: float = 0.0
    calibrate: float = 0.0
    convert: float = 0.0
    export: float = 0.0
    """0 if no file was asked for."""
    peak_gb: float | None = None
    """Greatest allocation on the GPU from `prepare` to `convert`."""
    decibels: float = 0.0
    """SQNR of the quantized network's outputs on the first images."""
    rules: list[str] = field(default_factory=list)
    """What in the file breaks TensorRT's rules."""

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add to a step's seconds what the block takes, the GPU's work included."""
        _finish(self.device)
        start = time.perf_counter()
        yield
        _finish(self.device)
        setattr(self, step, getattr(self, step) + time.perf_counter() - start)


def recipe_of(name: str, steps: int) -> Recipe:
    """Return 8/8 bits for aciq and tensorrt, 4-bit weights for the others, as AIMET rounds them."""
    if name in LEARNED:
        options = {"activation_bits": None, **LEARNED[name]}
        return Recipe.adaround(weight_bits=4, steps=steps, **options)
    return Recipe.aciq(target="tensorrt") if name == "tensorrt" else Recipe.aciq()


def measure(
    model: nn.Module,
    images: Tensor,
    *,
    recipe: str,
    steps: int,
    device: str,
    onnx: Path | None = None,
) -> Result:
    """Quantize `model` by a recipe on a device; write an ONNX file if one is asked for."""
    model, images = model.to(device), images.to(device)
    batches = torch.split(images, _BATCH)
    fxquant.quantize(model, [images[:2]], recipe_of(recipe, steps=1), progress=False)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = Result(recipe, device)
    with result.timed("prepare"):
        prepared = fxquant.prepare(model, recipe_of(recipe, steps), example_inputs=images[:2])
    with result.timed("calibrate"):
        fxquant.calibrate(prepared, batches, progress=False)
    with result.timed("convert"):
        quantized = fxquant.convert(prepared, progress=False)
    if device == "cuda":
        result.peak_gb = torch.cuda.max_memory_allocated() / 1e9
    with torch.no_grad():
        judged = images[:_JUDGED_IMAGES]
        result.decibels = sqnr(model(judged), quantized(judged))
    if onnx is not None:
        with result.timed("export"):
            fxquant.export_onnx(quantized.cpu(), onnx, images[:2].cpu())
        result.rules = [str(each) for each in check(onnx)]
    return result


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantize as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--model", type=Path, required=True, help="a whole module, torch.save'd")
    parser.add_argument("--images", type=Path, required=True, help="tensor (N, 3, H, W)")
    parser.add_argument("--steps", type=int, default=1000, help="of AdaRound, for each layer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--onnx", type=Path, help="a file to write")
    parser.add_argument("--out", type=Path, required=True, help="JSON, written")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    result = measure(
        torch.load(options.model, weights_only=False),
        torch.load(options.images),
        recipe=options.recipe,
        steps=options.steps,
        device=options.device,
        onnx=options.onnx,
    )
    options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
