"""Quantize a trained CIFAR ResNet by every range method and print the table.

    python -m benchmarks.ranges.cifar10 --data cifar10.npz --weights cifar10_resnet20.safetensors

`--data` holds uint8 NHWC images and labels: test_x, test_y, calib_x. `--weights` is a state dict
with the usual names of CIFAR ResNets (conv1, bn1, layer1.0.conv1, …, linear or fc).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.judging.comparison import activation_recipes, compare, table
from benchmarks.networks.cifar_resnet import CifarResNet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load_model(weights: Path, depth: int = 20) -> CifarResNet:
    """Return the trained network."""
    state = load_file(weights)
    model = CifarResNet(depth)
    model.load_state_dict({name.replace("linear.", "fc."): value for name, value in state.items()})
    return model.eval()


def normalize(images: np.ndarray) -> Tensor:
    """Return uint8 images (N, H, W, 3) as normalized float32 (N, 3, H, W)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=256, help="number of images")
    options = parser.parse_args()
    data = np.load(options.data)
    results = compare(
        load_model(options.weights, options.depth),
        activation_recipes(),
        normalize(data["calib_x"][: options.calibration]),
        normalize(data["test_x"]),
        torch.from_numpy(data["test_y"]).long(),
    )
    print(table(results))


if __name__ == "__main__":
    main()
