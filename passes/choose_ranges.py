"""Turn each observer into a fake-quantizer.

Before:  observers_relu = Observer(conv); relu = ReLU(observers_relu)
After:   relu = ReLU(conv); quantizers_relu = FakeQuantize(relu)

The quantizer stands behind the ReLU that its observer stood before. Its scale and zero-point spread
the integers over the range that the observer's spec chooses (`fxquant.ranges`; report I.B, II.A).
One that takes its range from each batch (`fxquant.dynamic`) stays before the ReLU, where the
distribution is whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxquant.affine import Grid, activation_grid, affine_parameters, dequantize, quantize
from fxquant.calibration import check_calibrated, find_observers
from fxquant.channel_bits import channel_bits, uneven_parameters
from fxquant.channel_ranges import channel_range
from fxquant.cross_entropy import cross_entropy_range
from fxquant.dynamic import DynamicQuantize
from fxquant.fakequant import FakeQuantize
from fxquant.graph import delete_unused, free_name, insert_after
from fxquant.meta import refuse
from fxquant.observers import ChannelObserver, LogitObserver, Observer
from fxquant.pipeline import Pass
from fxquant.ranges import activation_range
from fxquant.spec import TensorSpec


@dataclass(frozen=True, eq=False)
class ChooseRanges(Pass):
    """Turn each observer into a fake-quantizer."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `CalibrationError` if nothing was calibrated, or what was seen is not finite."""
        check_calibrated(graph_module)

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each observer; one that saw nothing is removed, with the reason recorded."""
        container = free_name(gm, "quantizers")
        quantizers: dict[Observer, str] = {}
        observed = list(find_observers(gm))
        containers = set()
        for node, watched, observer in observed:
            is_dynamic = observer.spec.dynamic
            tensor = next(iter(node.users)) if observer.clamp and not is_dynamic else watched
            node.replace_all_uses_with(watched)
            observers, _, label = str(node.target).rpartition(".")
            containers.add(observers)
            gm.graph.erase_node(node)
            if observer.needs_data and observer.num_batches == 0:
                refuse(tensor, "left in float: no floating-point value seen in calibration")
                continue
            if observer not in quantizers:
                quantizers[observer] = f"{container}.{label}"
                gm.add_submodule(quantizers[observer], quantizer_of(observer))
            _insert(gm, tensor, quantizers[observer])
        delete_unused(gm, containers)
        return bool(observed)


def _insert(gm: fx.GraphModule, tensor: fx.Node, target: str) -> None:
    """Put a call of the quantizer `target` behind `tensor`, for all that use it."""
    users = list(tensor.users)
    with insert_after(tensor):
        quantizer = gm.graph.call_module(target, (tensor,))
    for user in users:
        user.replace_input_with(tensor, quantizer)


def quantizer_of(observer: Observer) -> FakeQuantize | DynamicQuantize:
    """Return the fake-quantizer for what `observer` saw, or knows without."""
    spec = observer.spec
    if spec.dynamic:
        return DynamicQuantize(spec, observer.clamp, observer.axis)
    low, high = _range(observer, spec)
    if spec.bit_allocation and observer.axis is not None and low.dim():
        return _uneven_quantizer(observer, low, high)
    grid = activation_grid(low.min().item(), spec)
    scale, zero_point = affine_parameters(low, high, grid, symmetric=spec.symmetric)
    axis = observer.axis if scale.dim() else None
    loss = _sqnr(observer, scale, zero_point, grid) if axis is None else math.nan
    device = observer.low.device
    return FakeQuantize(scale.to(device), zero_point.to(device), grid, spec, loss, axis)


def _uneven_quantizer(observer: Observer, low: Tensor, high: Tensor) -> FakeQuantize:
    """Return a quantizer whose channels have bits of their own, by the widths of their ranges."""
    bits = channel_bits(high.clamp_min(0) - low.clamp_max(0), observer.spec.bits)
    for width in sorted(set(bits.tolist())):  # fewer bits clip earlier
        spec = replace(observer.spec, bits=max(width, 2))
        own_low, own_high = _range(observer, spec)
        low, high = (
            torch.where(bits == width, own_low, low),
            torch.where(bits == width, own_high, high),
        )
    device = observer.low.device
    scale, zero_point, last = (each.to(device) for each in uneven_parameters(low, high, bits))
    grid = Grid(0, int(last.max()))
    return FakeQuantize(scale, zero_point, grid, observer.spec, math.nan, observer.axis, last)


def _range(observer: Observer, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) by `spec`, () or (channels,) each, on the CPU."""
    if observer.known is not None:
        return observer.known[0].cpu(), observer.known[1].cpu()
    if isinstance(observer, ChannelObserver):
        channels = observer.channel_statistics()
        if channels is not None:
            low, high = channel_range(channels, spec)
            return low.cpu(), high.cpu()
    if isinstance(observer, LogitObserver) and spec.range == "cross_entropy":
        ends = cross_entropy_range(
            observer.rows.cpu(), observer.low.item(), observer.high.item(), spec
        )
    else:
        ends = activation_range(observer.statistics(), spec)
    return tuple(torch.tensor(ends, dtype=torch.float64).unbind())  # type: ignore[return-value]


def _sqnr(observer: Observer, scale: Tensor, zero_point: Tensor, grid: Grid) -> float:
    """Return signal over quantization noise of what was seen, in dB; NaN if nothing was."""
    if observer.num_batches == 0:
        return math.nan
    points, weights = observer.statistics().output.subdivided(4)
    noise = dequantize(quantize(points, scale, zero_point, grid), scale, zero_point) - points
    power = (points.square() * weights).sum()
    error = (noise.square() * weights).sum()
    return math.inf if error == 0 else (10 * torch.log10(power / error)).item()
