"""Min-max quantization with hooks, without a graph: what a few lines of PyTorch give.

Each convolution and linear module rounds its weight per channel, symmetrically, and its input per
tensor, both to 8 bits between the least and the greatest value seen. Nothing is folded or fused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.modules.layers import LAYERS, is_transposed


def hooked_minmax(model: nn.Module, run: Callable[[nn.Module], object]) -> nn.Module:
    """Return a copy of `model` that simulates 8/8 bits with hooks.

    Args:
        model: in eval mode; left as it is.
        run: called once with the copy, to let it see the calibration data.
    """
    simulated = copy.deepcopy(model)
    layers = [module for module in simulated.modules() if isinstance(module, LAYERS)]
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def watch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = min(low, args[0].min().item()), max(high, args[0].max().item())

    def round_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if layer not in ranges:
            return args
        return (_rounded(args[0], *ranges[layer]), *args[1:])

    watching = [layer.register_forward_pre_hook(watch) for layer in layers]
    run(simulated)
    for hook in watching:
        hook.remove()
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(_rounded_weight(layer.weight, int(is_transposed(layer))))
            layer.register_forward_pre_hook(round_input)
    return simulated


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    scale = max((high - low) / 255, 1e-12)
    zero_point = min(max(round(-low / scale), 0), 255)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)


def _rounded_weight(weight: Tensor, axis: int) -> Tensor:
    greatest = weight.abs().amax([each for each in range(weight.dim()) if each != axis])
    zeros = torch.zeros_like(greatest, dtype=torch.int32)
    scale = (greatest / 127).clamp(min=1e-12)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -127, 127)
