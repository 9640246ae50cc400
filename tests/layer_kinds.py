"""Every kind of layer that is quantized, with and without groups."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fxquant.modules.layers import LAYERS, Layer

KINDS = [pytest.param(kind, {}, id=kind.__name__) for kind in LAYERS]
KINDS += [
    pytest.param(kind, {"groups": groups}, id=f"{kind.__name__}-groups{groups}")
    for kind in LAYERS
    for groups in (2, 4)  # 4 is depthwise: one input channel a group
    if kind is not nn.Linear
]


def make_layer(kind: type[nn.Module], options: dict[str, Any], **more: Any) -> Layer:
    """Return a layer from 4 to 8 channels, kernel 3 where it has one."""
    kernel = {} if kind is nn.Linear else {"kernel_size": 3}
    return cast(Layer, kind(4, 8, **(kernel | options | more)))


def make_input(layer: Layer) -> Tensor:
    """Return a batch of 3 for `layer`, of images with odd sides."""
    sides = (7, 5, 5)[: layer.weight.dim() - 2]
    return torch.randn(3, 4, *sides, dtype=layer.weight.dtype)
