"""Round activations so that scales can be learned, with elements left in float at random.

x̂ = s · clamp(round(x/s), low, high),  ∂x̂/∂x = 1 inside of the bounds, 0 outside
∂x̂/∂s = round(x/s) - x/s inside of the bounds, the bound outside      (LSQ: Esser et al., 2020)

With G = ∂L/∂x̂ and G' = ∂L/∂x both parts of the latter are one difference,

    ∂L/∂s = (Σ G x̂ - Σ G' x) / s,

to which an element left in float adds G x - G x = 0. So where one scale serves a whole tensor, all
that is kept are x and x̂, and each part of the tensor stays in the cache while it is worked on.
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

_IN_PARTS = (torch.float32, torch.bfloat16)
_PART = 1 << 16  # elements: what is done with them stays in the cache
_PARTS_OF_SCALE = 8  # of the parts of a tensor: the gradient of its scale is their mean


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
    if quantizer.axis is None and _goes_in_parts(value):
        scale = scales.get(quantizer, quantizer.scale)
        zero_point = float(quantizer.zero_point)
        ends = (quantizer.grid.quant_min - zero_point, quantizer.grid.quant_max - zero_point)
        parts: Tensor = _RoundInParts.apply(value, scale, ends, dropped)
        return parts
    axis, rank = quantizer.axis, value.dim()
    scale = along_axis(scales.get(quantizer, quantizer.scale), axis, rank)
    low = along_axis(quantizer.grid.quant_min - quantizer.zero_point, axis, rank)
    high = along_axis(quantizer.last - quantizer.zero_point, axis, rank)
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    kept = None if dropped is None else dropped.to(wide.dtype)
    result = _RoundToGrid.apply(wide, scale, low, high, kept)
    assert isinstance(result, Tensor)
    return result.to(value.dtype)


class _RoundInParts(torch.autograd.Function):
    """The same for one scale, (); bounds are numbers. Memory is read and written once each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, ends: tuple[float, float], dropped: Tensor | None
    ) -> Tensor:
        step, result = float(scale), torch.empty_like(x)
        dropped = None if dropped is None else _laid_out_as(x, dropped)
        wide = torch.empty(_PART, device=x.device)
        whole = [_in_memory(each) for each in (x, result, dropped) if each is not None]
        for own, rounded, *kept in zip(*(torch.split(each, _PART) for each in whole), strict=True):
            part = rounded if own.dtype == wide.dtype else wide[: len(own)]
            part.copy_(own).mul_(1 / step).round_().clamp_(*ends).mul_(step)
            if part is not rounded:
                rounded.copy_(part)
            if kept:
                rounded.lerp_(own, kept[0])
        ctx.save_for_backward(x, result, scale, dropped)
        ctx.ends = ((ends[0] - 0.5) * step, (ends[1] + 0.5) * step)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, result, scale, dropped = ctx.saved_tensors
        by_x = torch.empty_like(x)
        gradient = _laid_out_as(x, gradient)
        whole = [_in_memory(each) for each in (x, result, gradient, by_x)]
        whole += [_in_memory(dropped)] if dropped is not None else []
        parts = list(zip(*(torch.split(each, _PART) for each in whole), strict=True))
        every = max(1, len(parts) // _PARTS_OF_SCALE)
        by_scale, counted = torch.zeros((), device=x.device), 0
        for number, (own, rounded, given, wanted, *kept) in enumerate(parts):
            torch.ops.aten.hardtanh_backward(given, own, *ctx.ends, grad_input=wanted)
            if kept:
                wanted.lerp_(given, kept[0])
            if ctx.needs_input_grad[1] and number % every == 0:
                by_scale += torch.dot(given.float(), rounded.float())
                by_scale -= torch.dot(wanted.float(), own.float())
                counted += len(own)
        share = counted / max(x.numel(), 1) or 1.0
        return by_x, (by_scale / (share * scale)).view_as(scale), None, None


def _goes_in_parts(value: Tensor) -> bool:
    """Say whether the values lie on a CPU, which has a cache, and fill their memory in order."""
    is_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    is_dense = is_last or value.is_contiguous()
    return value.is_cpu and value.dtype in _IN_PARTS and is_dense


def _laid_out_as(value: Tensor, other: Tensor) -> Tensor:
    """Return `other`, or a copy of it, in the order of memory and the dtype of `value`."""
    is_same = other.stride() == value.stride() and other.dtype == value.dtype
    return other if is_same else torch.empty_like(value).copy_(other)


def _in_memory(value: Tensor) -> Tensor:
    """Return a dense tensor's values as one row, in the order of its memory."""
    if value.is_contiguous():
        return value.view(-1)
    return value.permute(0, 2, 3, 1).reshape(-1)


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
        self._bits: dict[torch.dtype, Tensor] = {}

    def draw(self, value: Tensor) -> Tensor | None:
        """Return 0 or 1 for each element of `value`, in its memory format; None for no 1."""
        if self._probability == 0:
            return None
        size = value.numel()
        dtype = value.dtype if value.dtype in _IN_PARTS else torch.float32
        row = self._bits.get(dtype)
        if row is None or len(row) < 2 * size:
            numbers = torch.rand(4 * size, generator=self._generator)
            row = self._bits[dtype] = (numbers < self._probability).to(value.device, dtype)
        start = int(torch.randint(len(row) - size, (1,), generator=self._generator))
        bits = row[start : start + size]
        if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
            samples, channels, height, width = value.shape
            return bits.view(samples, height, width, channels).permute(0, 3, 1, 2)
        return bits.view(value.shape)
