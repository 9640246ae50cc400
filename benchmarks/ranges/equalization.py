"""Give channels wild ranges, quantize with one scale a weight, and show what equalization recovers.

    python -m benchmarks.ranges.equalization
    python -m benchmarks.ranges.equalization --data cifar10.npz \
        --weights cifar10_resnet20.safetensors

In each block the channels between its two convolutions are multiplied by random factors, 2⁻ˢ to 2ˢ,
in the batch norm of the first, and divided by them in the second one's weight: the float network
computes what it did. Weights and activations have 8 bits. Without `--data`: the digits.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import digits
from benchmarks.judging.comparison import compare, table
from benchmarks.networks import cifar_resnet
from benchmarks.ranges import cifar10
from fxquant import Recipe, TensorSpec

HERE = Path(__file__).parents[1]


def with_wild_channels(model: nn.Module, octaves: float) -> nn.Module:
    """Return a copy of `model` that computes the same, its blocks' inner channels rescaled."""
    wild = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for block in wild.modules():
        if isinstance(block, (cifar_resnet.Block, digits.Block)):
            factors = 2 ** (
                octaves * (2 * torch.rand(len(block.bn1.weight), generator=generator) - 1)
            )
            with torch.no_grad():
                block.bn1.weight.mul_(factors)
                block.bn1.bias.mul_(factors)
                block.conv2.weight.div_(factors[:, None, None])
    return wild


def recipes() -> list[tuple[str, str, Recipe]]:
    """Return what is compared."""
    one_scale: dict[str, Any] = {"weights": TensorSpec(symmetric=True)}
    return [
        ("8/8", "one scale a weight", Recipe(**one_scale)),
        ("8/8", "one scale a weight, equalized", Recipe(**one_scale, equalization=True)),
        ("8/8", "one scale a channel", Recipe()),
        ("8/8", "one scale a channel, equalized", Recipe(equalization=True)),
    ]


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return the network, calibration images, test images and labels."""
    if options.data is None:
        train_x, train_y, test_x, test_y = digits.load_data()
        model = digits.trained_model(train_x, train_y, HERE / ".cache" / "digits.pt")
        return model, train_x[:256], test_x, test_y
    data = np.load(options.data)
    images = cifar10.normalize(data["test_x"])
    labels = torch.from_numpy(data["test_y"]).long()
    trained = cifar10.load_model(options.weights)
    return trained, cifar10.normalize(data["calib_x"][:256]), images, labels


def main() -> None:
    """Print a table of the network as it is, and one with wild channels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--octaves", type=float, default=5.0, help="s")
    options = parser.parse_args()
    model, calibration, images, labels = load(options)
    for octaves in (0.0, options.octaves):
        wild = with_wild_channels(model, octaves)
        print(f"channels times 2^±{octaves:g}\n")
        print(table(compare(wild, recipes(), calibration, images, labels)), end="\n\n")


if __name__ == "__main__":
    main()
