"""What is known of a graph's nodes, kept in a module, where copies and pickles keep it too.

`node.meta` alone is lost by pickling, and shared by copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from torch import fx, nn

from fxquant.capture.attributes import KEY
from fxquant.capture.naming import Untraced, find_regions
from fxquant.errors import CaptureError
from fxquant.graph.records import Record, record
from fxquant.recipe.recipe import Recipe
from fxquant.stored_names import stored_as


@stored_as("Journal")
class Journal(nn.Module):
    """The submodule that carries the recipe, the node names and the records through pickling.

    Unpickling traces the code anew and names nodes anew; the order is kept. Of a model that is not
    one graph it also says what stayed in Python, and what multiply-adds run there, by module.
    """

    recipe: Recipe
    lines: list[tuple[str, str, Record]]
    untraced: tuple[Untraced, ...]
    multiply_adds: dict[str, float]

    def __init__(
        self,
        recipe: Recipe,
        lines: list[tuple[str, str, Record]],
        untraced: tuple[Untraced, ...] = (),
        multiply_adds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.lines = lines
        self.untraced = untraced
        self.multiply_adds = dict(multiply_adds or {})

    def write(self, gm: fx.GraphModule) -> None:
        """Keep the names of the nodes of `gm`, and what is known of them."""
        self.lines = [(_identity(node), node.name, record(node)) for node in gm.graph.nodes]

    def put_back(self, gm: fx.GraphModule) -> None:
        """Give the nodes of `gm` their names, and what was known of them, if pickling took it."""
        nodes = list(gm.graph.nodes)
        if [_identity(node) for node in nodes] != [identity for identity, _, _ in self.lines]:
            return  # other passes have changed the graph since
        for node, (_, _, known) in zip(nodes, self.lines, strict=True):
            node.meta.setdefault(KEY, known)
        names = [name for _, name, _ in self.lines]
        if [node.name for node in nodes] != names:
            for node, name in zip(nodes, names, strict=True):
                node.name = name
                gm.graph._graph_namespace.create_name(name, None)  # no new node gets it
            gm.recompile()

    def forward(self, x: Any) -> Any:
        """Return `x`: a `Sequential` that stays in Python calls all that is in it."""
        return x


def write_journals(
    model: nn.Module,
    recipe: Recipe,
    untraced: tuple[Untraced, ...] | None = None,
    multiply_adds: Mapping[str, float] | None = None,
) -> None:
    """Keep the recipe, the names and all records in `model` itself, graph by graph.

    `untraced` and `multiply_adds`, which are of what runs outside of graphs, keep at None what was
    written before.
    """
    known = read_untraced(model) if untraced is None else untraced
    graphs = find_regions(model).values()
    for gm in graphs:
        journal = Journal(recipe, [], known if gm is model else ())
        journal.write(gm)
        gm.add_submodule(KEY, journal)
    if model not in graphs:
        if not isinstance(getattr(model, KEY, None), (Journal, NoneType)):
            raise CaptureError(f"{type(model).__name__} has an attribute {KEY!r}: rename it")
        counts = read_python_multiply_adds(model) if multiply_adds is None else multiply_adds
        setattr(model, KEY, Journal(recipe, [], known, counts))


def read_recipe(model: nn.Module) -> Recipe | None:
    """Put back what pickling dropped, in all graphs; return the recipe, None without a journal."""
    for gm in find_regions(model).values():
        of_graph = getattr(gm, KEY, None)
        if isinstance(of_graph, Journal):
            of_graph.put_back(gm)
    journal = getattr(model, KEY, None)
    return journal.recipe if isinstance(journal, Journal) else None


def read_untraced(model: nn.Module) -> tuple[Untraced, ...]:
    """Return what of `model` stayed in Python."""
    journal = getattr(model, KEY, None)
    return journal.untraced if isinstance(journal, Journal) else ()


def read_python_multiply_adds(model: nn.Module) -> dict[str, float]:
    """Return the multiply-adds, a sample, that run outside of graphs, by name of the module."""
    journal = getattr(model, KEY, None)
    return getattr(journal, "multiply_adds", {})  # journals of older files have none


def _identity(node: fx.Node) -> str:
    """Return what tracing the generated code again keeps of a node."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{node.op} {target}"
