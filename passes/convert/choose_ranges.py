"""Turn each observer into a fake-quantizer.

Before:  observers_relu = Observer(conv); relu = ReLU(observers_relu)
After:   relu = ReLU(conv); quantizers_relu = FakeQuantize(relu)

The quantizer stands behind the ReLU that its observer stood before. Its scale and zero-point spread
the integers over the range that the observer's spec chooses (`fxquant.numerics.activation_ranges`;
report I.B, II.A). One that takes its range from each batch (`fxquant.modules.dynamic_quantize`)
stays before the ReLU, where the distribution is whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.calibration.observed import check_calibrated, find_observers
from fxquant.calibration.quantizer_choice import quantizer_of
from fxquant.graph.chains import insert_after
from fxquant.graph.operations import readers
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, free_name
from fxquant.modules.observers import Observer
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED


@dataclass(frozen=True, eq=False)
class ChooseRanges(Pass):
    """Turn each observer into a fake-quantizer."""

    starts_from = OBSERVED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `CalibrationError` if nothing was calibrated, or what was seen is not finite."""
        check_calibrated(graph_module)

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each observer; one that saw nothing is removed, with the reason recorded."""
        submodules = Submodules(gm)
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
                refuse(tensor, "left in float", "no floating-point value seen in calibration")
                continue
            if observer not in quantizers:
                quantizers[observer] = free_name(gm, f"{container}.{label}")
                submodules.put(quantizers[observer], quantizer_of(observer))
            _insert(gm, tensor, quantizers[observer])
        submodules.drop_unused(containers)
        return bool(observed)


def _insert(gm: fx.GraphModule, tensor: fx.Node, target: str) -> None:
    """Put a call of the quantizer `target` behind `tensor`, for all that use it."""
    users = readers(gm, tensor)
    with insert_after(tensor):
        quantizer = gm.graph.call_module(target, (tensor,))
    for user in users:
        user.replace_input_with(tensor, quantizer)
