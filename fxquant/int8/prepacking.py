"""Integer weights in the layout of oneDNN's kernels, packed once and kept as long as they live.

The layout is chosen for the first shape of inputs that a weight meets, and works for every other;
one chosen for no shape at all would be rearranged again at many calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fxquant.int8.operands import Geometry, Weight

_PACKED: Any = WeakIdKeyDictionary()
"""integers → {geometry: (their version, the packed weight, zero-points)}."""


def prepacked_conv(x: Tensor, weight: Weight, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a convolution of `x`, and the zero-points of its outputs.

    Args:
        x: uint8 (N, in, *positions).
        weight: (out, in/groups, *kernel).
        geometry: for which it is packed.
    """

    def pack() -> Tensor:
        shape = list(x.shape) if x.numel() else None
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            weight.integers, weight.scale, 1.0, 0, *geometry, shape
        )
        return packed

    return _prepacked(weight, geometry, pack)


def prepacked_linear(x: Tensor, weight: Weight) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a linear layer, and the zero-points of its outputs.

    Args:
        x: uint8 (…, in).
        weight: (out, in), or (out, in, 1, 1).
    """

    def pack() -> Tensor:
        shape = [x.numel() // x.shape[-1], x.shape[-1]] if x.numel() else None
        # Of a weight that is a transpose qlinear_prepack reads the wrong values.
        rows = weight.integers.flatten(1).contiguous()
        packed: Tensor = torch.ops.onednn.qlinear_prepack(rows, shape)
        return packed

    return _prepacked(weight, None, pack)


def _prepacked(
    weight: Weight, geometry: Geometry | None, pack: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    integers = weight.integers
    kept = _PACKED.setdefault(integers, {})
    version = -1 if integers.is_inference() else integers._version
    packed = kept.get(geometry)
    if packed is None or packed[0] != version:
        zero_points = torch.zeros(weight.scale.numel(), dtype=torch.int64)
        packed = kept[geometry] = version, pack(), zero_points
    return packed[1], packed[2]
