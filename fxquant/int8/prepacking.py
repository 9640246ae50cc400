"""Integer weights in the layout of oneDNN's kernels, packed once and kept as long as they live.

The layout is chosen for the first shape of inputs that a weight meets, and works for every other;
one chosen for no shape at all would be rearranged again at many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_PACKED: Any = WeakIdKeyDictionary()
"""weight → {geometry: (its version, the packed weight, zero-points)}."""


def prepacked_conv(
    x: Tensor, weight: Tensor, weight_scale: Tensor, geometry: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a convolution of `x`, and the zero-points of its outputs.

    Args:
        x: uint8 (N, in, *positions).
        weight: int8 (out, in/groups, *kernel).
        weight_scale: float32 (out,) or (1,).
        geometry: stride, padding and dilation, a tuple each, and groups.
    """

    def pack() -> Tensor:
        shape = list(x.shape) if x.numel() else None
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            weight, weight_scale, 1.0, 0, *geometry, shape
        )
        return packed

    return _prepacked(weight, weight_scale, geometry, pack)


def prepacked_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed weight of a linear layer, and the zero-points of its outputs.

    Args:
        x: uint8 (…, in).
        weight: int8 (out, in), or (out, in, 1, 1).
        weight_scale: float32 (out,) or (1,).
    """

    def pack() -> Tensor:
        shape = [x.numel() // x.shape[-1], x.shape[-1]] if x.numel() else None
        # Of a weight that is a transpose qlinear_prepack reads the wrong values.
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.flatten(1).contiguous(), shape)
        return packed

    return _prepacked(weight, weight_scale, (), pack)


def _prepacked(
    weight: Tensor, weight_scale: Tensor, geometry: Sequence[Any], pack: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    kept = _PACKED.setdefault(weight, {})
    version = -1 if weight.is_inference() else weight._version
    if geometry not in kept or kept[geometry][0] != version:
        zero_points = torch.zeros(weight_scale.numel(), dtype=torch.int64)
        kept[geometry] = version, pack(), zero_points
    _, packed, zero_points = kept[geometry]
    return packed, zero_points
