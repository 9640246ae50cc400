"""What `fxquant.analyze` is measured on: three trained networks, at bits that hurt them.

Data and weights are in one folder, `--data`: `cifar10.npz` and `cifar10_resnet20.safetensors`;
`imagenet/`, `imagenet_squeezenet1_1.safetensors` and `imagenet_mobilenet_v2.safetensors`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.pretrained import load_model
from benchmarks.ranges import cifar10, imagenet
from benchmarks.rounding.low_bits import load_images, split
from fxquant import Recipe

BITS = {"resnet20": (4, 4), "squeezenet1_1": (8, 4), "mobilenet_v2": (4, 8)}
BATCH_SIZE = 16


@dataclass(frozen=True)
class Subject:
    """A network, its recipe, and images."""

    model: nn.Module
    recipe: Recipe
    calibration: Tensor
    images: Tensor
    """To judge by: none of them was calibrated on."""

    @property
    def batches(self) -> list[Tensor]:
        """What the network is calibrated on."""
        return list(torch.split(self.calibration, BATCH_SIZE))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what says which networks and how many images."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else "")
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--networks", nargs="+", choices=BITS, default=[*BITS])
    made.add_argument("--calibration", type=int, default=128, help="number of images")
    made.add_argument("--images", type=int, default=128, help="that judge")
    return made


def load_subject(name: str, options: argparse.Namespace) -> Subject:
    """Return one of the networks of `BITS`, which are of weights and activations."""
    folder: Path = options.data
    if name == "resnet20":
        data = np.load(folder / "cifar10.npz")
        model: nn.Module = cifar10.load_model(folder / "cifar10_resnet20.safetensors")
        known = cifar10.normalize(data["calib_x"][: options.calibration])
        judged = cifar10.normalize(data["test_x"][: options.images])
    else:
        model = load_model(name, folder / f"imagenet_{name}.safetensors")
        if name == "mobilenet_v2":  # these weights take such images
            images = (load_images(folder / "imagenet")[0] / 127.5 - 1).flip((2, 3))
        else:
            images, _ = imagenet.load_images(folder / "imagenet")
        first, second = split(len(images), 0)
        known = images[first[: options.calibration]]
        judged = images[second[: options.images]]
    weight_bits, activation_bits = BITS[name]
    recipe = Recipe.aciq(weight_bits=weight_bits, activation_bits=activation_bits)
    return Subject(model, recipe, known, judged)
