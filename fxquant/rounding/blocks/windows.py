"""Windows of images that a block is learned from, in place of whole images.

Of a block of convolutions an output position depends on the inputs around it alone. A step on a
window of 14 × 14 outputs, with a border of inputs around it, has a 64th of the positions of
112 × 112, and another window is drawn in each.

    inputs   [ border | window | border ]     a border ends where the image does
    outputs  [ wrong  | judged | wrong  ]     the block pads with zeros where the image goes on

Whether a block may be cut up is found by trying: its float outputs in windows at the ends of the
image and inside of it must be those of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SIZE = 14  # output positions along each side
_MIN_SAME_SQNR = 60.0  # dB; float32's sums in another order agree to 100


@dataclass(frozen=True)
class Cut:
    """One window of a batch."""

    inputs: tuple[slice, slice]
    outputs: tuple[slice, slice]
    """Of the whole image's."""
    judged: tuple[slice, slice]
    """The same, among the outputs that the window's inputs give."""

    def of_inputs(self, x: Tensor) -> Tensor:
        """Return the window's inputs, borders included, of (N, C, H, W)."""
        return x[(..., *self.inputs)]

    def of_targets(self, y: Tensor) -> Tensor:
        """Return the window's part of whole outputs."""
        return y[(..., *self.outputs)]

    def of_outputs(self, y: Tensor) -> Tensor:
        """Return what of the window's own outputs is right."""
        return y[(..., *self.judged)]


@dataclass(frozen=True)
class Windows:
    """How the images of one shape may be cut up."""

    height: int
    """Of the outputs."""
    width: int
    stride: int
    """Input positions for each output position."""
    border: int
    """Output positions on each side that a window's end makes wrong."""

    @property
    def num_positions(self) -> int:
        """Output positions in a window."""
        return _SIZE * _SIZE

    def draw(self, generator: torch.Generator) -> Cut:
        """Return a window at a random place."""
        return self.at(*(self._start(size, generator) for size in (self.height, self.width)))

    def at(self, top: int, left: int) -> Cut:
        """Return the window whose first output position is (top, left)."""
        sides = [self._side(top, self.height), self._side(left, self.width)]
        inputs, outputs, judged = zip(*sides, strict=True)
        return Cut(inputs, outputs, judged)

    def corners(self) -> list[tuple[int, int]]:
        """Return where windows are tried: at both ends of the image, and inside of it."""
        last = (self.height - _SIZE, self.width - _SIZE)
        return [(0, 0), (self.border + 1, self.border + 2), last]

    def _start(self, size: int, generator: torch.Generator) -> int:
        return int(torch.randint(size - _SIZE + 1, (), generator=generator))

    def _side(self, start: int, size: int) -> tuple[slice, slice, slice]:
        first, last = max(0, start - self.border), min(size, start + _SIZE + self.border)
        return (
            slice(first * self.stride, last * self.stride),
            slice(start, start + _SIZE),
            slice(start - first, start - first + _SIZE),
        )

    @classmethod
    def of(cls, x: Tensor, target: Tensor, modules: Iterable[nn.Module | None]) -> Windows | None:
        """Return how images of a block may be cut up, as its kernels say; None where they may not.

        Args:
            x: the block's input.
            target: its output.
            modules: what its nodes call.
        """
        if x.dim() != 4 or target.dim() != 4 or 0 in target.shape:
            return None
        (height, width), (rows, columns) = x.shape[2:], target.shape[2:]
        stride = height // rows
        if (height, width) != (rows * stride, columns * stride) or stride == 0:
            return None
        border = sum(_reach(module) for module in modules)
        if min(rows, columns) <= _SIZE + 2 * border:
            return None
        return cls(rows, columns, stride, border)

    @staticmethod
    def is_right(found: Tensor, expected: Tensor) -> bool:
        """Say whether a window's outputs are those of the whole image."""
        error = (found - expected).to(torch.float64).square().sum()
        power = expected.to(torch.float64).square().sum()
        return found.shape == expected.shape and bool(error <= power * 10 ** (-_MIN_SAME_SQNR / 10))


def _reach(module: Any) -> int:
    """Return how many positions away a kernel reads, on the side where it is more."""
    kernel = getattr(module, "kernel_size", None)
    if kernel is None:
        return 0
    sizes = kernel if isinstance(kernel, tuple) else (kernel,)
    dilation = getattr(module, "dilation", 1)
    steps = dilation if isinstance(dilation, tuple) else (dilation,) * len(sizes)
    reach: int = max(step * (size - 1) for size, step in zip(sizes, steps, strict=True))
    return reach
