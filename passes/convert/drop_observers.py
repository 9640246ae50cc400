"""Remove what calibration put into the graph: the float model, batch norms folded, is left.

Before:  observers_x = Observer(x); conv = Conv2d(observers_x); return conv
After:   conv = Conv2d(x); return conv
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.calibration.input_keeper import InputKeeper
from fxquant.graph.chains import take_out
from fxquant.graph.operations import module_of
from fxquant.graph.submodules import Submodules
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class DropObservers(Pass):
    """Remove what calibration put into the graph."""

    starts_from = TRACED

    kinds: tuple[type, ...] = (Observer, ChannelMean, InputKeeper)
    """Of which modules the calls are removed."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Let the users of each observer read what it watched."""
        containers = set()
        for node in list(gm.graph.nodes):
            if isinstance(module_of(gm, node), self.kinds):
                take_out(node)
                path = str(node.target)
                containers.add(path.rpartition(".")[0] or path)
        Submodules(gm).drop_unused(containers)
        return bool(containers)
