"""The body of YOLOv8n: its backbone and its neck, from images to three maps of features.

The layers are those of Ultralytics' `yolov8.yaml` at scale n; the head, whose boxes are computed in
floating point, is left out. It has what most networks have not: SiLU behind every convolution,
tensors that are split, of which one half goes on and both are concatenated again, and
concatenations of maps that are added to elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-3  # of the batch norms


class Convolution(nn.Sequential):
    """A convolution, its batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, eps=_EPS), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3×3 convolutions, and the input added if asked for."""

    def __init__(self, channels: int, *, add: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            Convolution(channels, channels, 3), Convolution(channels, channels, 3)
        )
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        y: Tensor = self.convs(x)
        return x + y if self.add else y


class Split(nn.Module):
    """Both halves of a map and the results of bottlenecks behind the second one, concatenated."""

    def __init__(self, inputs: int, outputs: int, bottlenecks: int = 1, *, add: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = Convolution(inputs, outputs)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, add=add) for _ in range(bottlenecks))
        self.leave = Convolution((2 + bottlenecks) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W)."""
        parts = list(self.enter(x).chunk(2, 1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.leave(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """A map beside the greatest values around each of its places, over 5, 9 and 13 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = Convolution(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = Convolution(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))  # type: ignore[no-any-return]


class YoloBody(nn.Module):
    """YOLOv8n without its head."""

    def __init__(self) -> None:
        super().__init__()
        self.to_8 = nn.Sequential(
            Convolution(3, 16, 3, 2),
            Convolution(16, 32, 3, 2),
            Split(32, 32, add=True),
            Convolution(32, 64, 3, 2),
            Split(64, 64, 2, add=True),
        )
        self.to_16 = nn.Sequential(Convolution(64, 128, 3, 2), Split(128, 128, 2, add=True))
        self.to_32 = nn.Sequential(
            Convolution(128, 256, 3, 2), Split(256, 256, add=True), Pyramid(256)
        )
        self.up_16 = Split(256 + 128, 128, add=False)
        self.up_8 = Split(128 + 64, 64, add=False)
        self.down_16 = Convolution(64, 64, 3, 2)
        self.out_16 = Split(64 + 128, 128, add=False)
        self.down_32 = Convolution(128, 128, 3, 2)
        self.out_32 = Split(128 + 256, 256, add=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps at an 8th, a 16th and a 32nd of the images' size: 64, 128, 256 channels.

        Args:
            x: (N, 3, H, W), H and W multiples of 32.
        """
        at_8 = self.to_8(x)
        at_16 = self.to_16(at_8)
        at_32 = self.to_32(at_16)
        up_16 = self.up_16(torch.cat([_doubled(at_32), at_16], 1))
        out_8 = self.up_8(torch.cat([_doubled(up_16), at_8], 1))
        out_16 = self.out_16(torch.cat([self.down_16(out_8), up_16], 1))
        out_32 = self.out_32(torch.cat([self.down_32(out_16), at_32], 1))
        return out_8, out_16, out_32


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)
