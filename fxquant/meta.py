"""What fxquant knows of each node: one frozen `Record` under `node.meta["fxquant"]`.

`annotate` is the only writer. Copies of a graph share the objects in `node.meta`, hence frozen;
pickling drops `node.meta`, hence the `Journal`, a submodule that keeps the records, and the recipe,
for a model that is saved.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from fxquant.affine import Affine
from fxquant.recipe import Recipe
from fxquant.region import find_regions

_KEY = "fxquant"
_logger = logging.getLogger("fxquant")


@dataclass(frozen=True)
class Record:
    """Facts about one node."""

    origin: str | None = None
    """The module's name in the caller's model, where a pass gave this call a copy of it."""
    folded: tuple[str, ...] = ()
    """Names of the batch norms that the call's layer now computes."""
    relu: str | None = None
    """Name of the ReLU node fused behind this one."""
    fused_into: str | None = None
    """On that ReLU: name of the node it is fused behind."""
    clamp: tuple[float, float] | None = None
    """On both: the ReLU's bounds, (0, ∞) or (0, 6) for ReLU6."""
    skipped: bool = False
    """The recipe leaves the call in float."""
    refused: tuple[str, ...] = ()
    """What was not done with the node, and why."""
    integers: Affine | None = None
    """In a lowered graph: what the node's integers stand for; None: its result is in float."""
    value_of: str | None = None
    """In a lowered graph: the node of the fake-quantized graph whose value this one computes; None:
    the one of its own name; "": none, its result is in other units."""
    moments: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)
    """Mean and standard deviation of each output channel, as its batch norm has them."""


def record(node: fx.Node) -> Record:
    """Return the record of `node`: an empty one if nothing was written yet."""
    found = node.meta.get(_KEY, Record())
    assert isinstance(found, Record)
    return found


def annotate(node: fx.Node, **facts: Any) -> None:
    """Write `facts` (fields of `Record`) over what the node's record says of them."""
    node.meta[_KEY] = replace(record(node), **facts)


def refuse(node: fx.Node, reason: str) -> None:
    """Record why something was not done with `node`; the first time, log a warning too."""
    if reason not in record(node).refused:
        annotate(node, refused=(*record(node).refused, reason))
        _logger.warning("%s: %s", node.name, reason)


@dataclass(frozen=True)
class Untraced:
    """A submodule that stayed in Python, or in float, and why."""

    path: str
    """Its name in the model, "" for the model itself."""
    kind: str
    reason: str


class Journal(nn.Module):
    """The submodule that carries the recipe, the node names and the records through pickling.

    Unpickling traces the code anew and names nodes anew; the order is kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        lines: list[tuple[str, str, Record]],
        untraced: tuple[Untraced, ...] = (),
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.lines = lines
        self.untraced = untraced

    def forward(self, x: Any) -> Any:
        """Return `x`: a `Sequential` that stays in Python calls all that is in it."""
        return x


def write_journals(
    model: nn.Module, recipe: Recipe, untraced: tuple[Untraced, ...] | None = None
) -> None:
    """Keep the recipe, the names and all records in `model` itself, graph by graph.

    `untraced` of None keeps what was written before.
    """
    graphs = find_regions(model).values()
    for gm in graphs:
        lines = [(_identity(node), node.name, record(node)) for node in gm.graph.nodes]
        gm.add_submodule(_KEY, Journal(recipe, lines))
    if model not in graphs:
        known = read_untraced(model) if untraced is None else untraced
        setattr(model, _KEY, Journal(recipe, [], known))


def read_recipe(model: nn.Module) -> Recipe | None:
    """Put back what pickling dropped, in all graphs; return the recipe, None without a journal."""
    for gm in find_regions(model).values():
        _put_back(gm)
    journal = getattr(model, _KEY, None)
    return journal.recipe if isinstance(journal, Journal) else None


def read_untraced(model: nn.Module) -> tuple[Untraced, ...]:
    """Return what of `model` stayed in Python."""
    journal = getattr(model, _KEY, None)
    return journal.untraced if isinstance(journal, Journal) else ()


def _put_back(graph_module: fx.GraphModule) -> None:
    journal = getattr(graph_module, _KEY, None)
    if not isinstance(journal, Journal):
        return
    nodes = list(graph_module.graph.nodes)
    if [_identity(node) for node in nodes] != [identity for identity, _, _ in journal.lines]:
        return  # other passes have changed the graph since
    for node, (_, _, known) in zip(nodes, journal.lines, strict=True):
        node.meta.setdefault(_KEY, known)
    names = [name for _, name, _ in journal.lines]
    if [node.name for node in nodes] != names:
        for node, name in zip(nodes, names, strict=True):
            node.name = name
            graph_module.graph._graph_namespace.create_name(name, None)  # no new node gets it
        graph_module.recompile()


def _identity(node: fx.Node) -> str:
    """Return what tracing the generated code again keeps of a node."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{node.op} {target}"
