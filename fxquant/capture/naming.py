"""What nodes, targets and regions are called in the model that they come from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from fxquant.capture.region import TRACED, Region
from fxquant.stored_names import stored_as


@stored_as("Untraced")
@dataclass(frozen=True)
class Untraced:
    """A submodule that stayed in Python, or in float, and why."""

    path: str
    """Its name in the model, "" for the model itself."""
    kind: str
    reason: str


def path_of(gm: fx.GraphModule) -> str:
    """Return the name of a region in the whole model; of a model that is one graph, ""."""
    return gm.path if isinstance(gm, Region) else ""


def node_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return a node's name, that of its region in front."""
    return ".".join(part for part in (path_of(gm), node.name) if part)


def target_name(gm: fx.GraphModule, target: str) -> str:
    """Return the name in the whole model of what a node calls."""
    if not isinstance(gm, Region):
        return target
    inside = target.removeprefix(TRACED).removeprefix(".")
    return ".".join(part for part in (gm.path, inside) if part)


def find_regions(model: nn.Module) -> dict[str, fx.GraphModule]:
    """Return the graphs of a model by name; a model that is one graph is its own, named ""."""
    if isinstance(model, fx.GraphModule):
        return {path_of(model): model}
    regions = [module for module in model.modules() if isinstance(module, Region)]
    return {region.path: region for region in regions}
