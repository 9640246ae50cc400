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
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.judging.comparison import activation_recipes, compare, table

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (He et al., 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for 32×32 images: 20, 32, 56, 110 for n = 3, 5, 9, 18."""

    def __init__(self, depth: int = 20, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, blocks, 1)
        self.layer2 = self._layer(16, 32, blocks, 2)
        self.layer3 = self._layer(32, 64, blocks, 2)
        self.fc = nn.Linear(64, num_classes)

    def _layer(self, inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *[Block(outputs, outputs, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


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
