"""Round activations so that scales can be learned, with elements left in float at random.

x̂ = s · clamp(round(x/s), low, high),  ∂x̂/∂x = 1 inside of the bounds, 0 outside
∂x̂/∂s = round(x/s) - x/s inside of the bounds, the bound outside      (LSQ: Esser et al., 2020)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import along_axis

Quantizer = FakeQuantize | DynamicQuantize


def round_activation(
    quantizer: Quantizer,
    value: Tensor,
    scales: Mapping[FakeQuantize, Tensor],
    dropped: Tensor | None = None,
) -> Tensor:
    """Return `value` rounded as `quantizer` rounds it, in a way that gradients go through.

    Args:
        quantizer: a dynamic one has no scale to learn.
        value: any tensor; what is not floating-point is returned as it is.
        scales: what stands in for quantizers' own scales, in their shapes.
        dropped: 1 for elements that stay as they are, else 0, shaped as `value`; None for none.
    """
    if not value.is_floating_point():
        return value
    if not isinstance(quantizer, FakeQuantize):
        rounded = value + (quantizer(value) - value).detach()
        return rounded if dropped is None else torch.lerp(rounded, value, dropped.to(value.dtype))
    axis, rank = quantizer.axis, value.dim()
    scale = along_axis(scales.get(quantizer, quantizer.scale), axis, rank)
    low = along_axis(quantizer.grid.quant_min - quantizer.zero_point, axis, rank)
    high = along_axis(quantizer.last - quantizer.zero_point, axis, rank)
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    kept = None if dropped is None else dropped.to(wide.dtype)
    result = _RoundToGrid.apply(wide, scale, low, high, kept)
    assert isinstance(result, Tensor)
    return result.to(value.dtype)


class _RoundToGrid(torch.autograd.Function):
    """s · clamp(round(x/s), low, high), x where `dropped` is 1; `scale` and bounds broadcast to x.

    Masks are floats: on the CPU `torch.where` takes 20 times as long as `torch.lerp`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, dropped: Tensor | None
    ) -> Tensor:
        steps = x * (1 / scale)
        rounded = steps.round()
        kept = torch.clamp(rounded, low, high)
        passes = (rounded == kept).to(steps.dtype)
        by_scale = torch.addcmul(kept, steps, passes, value=-1)
        result = kept.mul_(scale)
        if dropped is not None:
            passes = torch.maximum(passes, dropped)
            by_scale.addcmul_(by_scale, dropped, value=-1)
            result = torch.lerp(result, x, dropped)
        ctx.save_for_backward(passes, by_scale)
        ctx.scale_shape = scale.shape
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        passes, by_scale = ctx.saved_tensors
        by_x = gradient * passes if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None, None, None, None
        return by_x, (gradient * by_scale).sum_to_size(ctx.scale_shape), None, None, None


class Drops:
    """Which elements of activations stay in float in a step.

    One long row of random bits is drawn, and read from a random place each time: new bits for every
    activation at every step would take as long as the convolutions.

    Args:
        probability: of an element.
        generator: on the CPU, so that every device draws the same.
    """

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        self._probability, self._generator = probability, generator
        self._bits = torch.empty(0)

    def draw(self, value: Tensor) -> Tensor | None:
        """Return 0 or 1 for each element of `value`, in its memory format; None for no 1."""
        if self._probability == 0:
            return None
        size = value.numel()
        if len(self._bits) < 2 * size:
            numbers = torch.rand(4 * size, generator=self._generator)
            self._bits = (numbers < self._probability).to(value.device, torch.float32)
        start = int(torch.randint(len(self._bits) - size, (1,), generator=self._generator))
        bits = self._bits[start : start + size]
        if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
            samples, channels, height, width = value.shape
            return bits.view(samples, height, width, channels).permute(0, 3, 1, 2)
        return bits.view(value.shape)
