"""Remove what calibration put into the graph: the float model, batch norms folded, is left.

Before:  observers_x = Observer(x); conv = Conv2d(observers_x); return conv
After:   conv = Conv2d(x); return conv
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.calibration.input_keeper import InputKeeper
from fxquant.graph.operations import module_of
from fxquant.graph.rewriting import delete_unused, take_out
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.passes.pipeline import Pass


@dataclass(frozen=True, eq=False)
class DropObservers(Pass):
    """Remove what calibration put into the graph."""

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
        delete_unused(gm, containers)
        return bool(containers)
