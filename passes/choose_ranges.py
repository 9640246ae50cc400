"""Turn each observer into a fake-quantizer.

Before:  observers_relu = Observer(conv); relu = ReLU(observers_relu)
After:   relu = ReLU(conv); quantizers_relu = FakeQuantize(relu)

The quantizer stands behind the ReLU that its observer stood before. Its scale and zero-point spread
the integers over the range that the observer's spec chooses (`fxquant.ranges`; report I.B, II.A).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxquant.affine import affine_parameters, dequantize, quantize
from fxquant.calibration import check_calibrated, find_observers
from fxquant.fakequant import FakeQuantize
from fxquant.graph import delete_unused, free_name, insert_after
from fxquant.meta import refuse
from fxquant.observers import Observer
from fxquant.pipeline import Pass
from fxquant.ranges import activation_grid, activation_range


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
            tensor = next(iter(node.users)) if observer.clamp else watched
            node.replace_all_uses_with(watched)
            observers, _, label = str(node.target).rpartition(".")
            containers.add(observers)
            gm.graph.erase_node(node)
            if observer.num_batches == 0:
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


def quantizer_of(observer: Observer) -> FakeQuantize:
    """Return the fake-quantizer for what `observer` saw."""
    statistics, spec = observer.statistics(), observer.spec
    low, high = activation_range(statistics, spec)
    grid = activation_grid(low, spec)
    ends = torch.tensor([low, high], dtype=torch.float64)
    scale, zero_point = affine_parameters(ends[0], ends[1], grid, symmetric=spec.symmetric)

    points, weights = statistics.output.subdivided(4)
    noise = dequantize(quantize(points, scale, zero_point, grid), scale, zero_point) - points
    power = (points.square() * weights).sum()
    error = (noise.square() * weights).sum()
    sqnr = float("inf") if error == 0 else (10 * torch.log10(power / error)).item()
    device = observer.low.device
    return FakeQuantize(scale.to(device), zero_point.to(device), grid, spec, sqnr)
