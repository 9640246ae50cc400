"""Graphs as a page shows them: what became of each node, and beside it what it was."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from fxquant.capture.naming import find_regions
from fxquant.display.figures import Graph, Line, Note
from fxquant.graph.printing import NodeText, node_texts
from fxquant.graph.records import record
from fxquant.graph.selection import call_name
from fxquant.reporting.rows import is_listed


def drawn_graphs(model: nn.Module, captured: nn.Module | None = None) -> tuple[Graph, ...]:
    """Return the graphs of `model`, each beside what it was.

    Args:
        model: a prepared, a converted or a lowered model.
        captured: the caller's model in graphs of the same names, nothing folded; None: not known.
    """
    before = {} if captured is None else find_regions(captured)
    return tuple(_graph(path, gm, before.get(path)) for path, gm in find_regions(model).items())


def _graph(path: str, gm: fx.GraphModule, captured: fx.GraphModule | None) -> Graph:
    title = f"Graph of {path}" if path else "Graph"
    after = tuple(_line(gm, each, _notes(each.node)) for each in node_texts(gm))
    if captured is None:
        return Graph(title, after, note=f"{len(after)} nodes; {_counts(gm)}")
    fates = dict(_fates(gm))
    left = {node.name for node in gm.graph.nodes}
    before = tuple(
        Line(each.node.name, _text(each), tuple(_note_before(captured, each.node, fates, left)))
        for each in node_texts(captured)
    )
    names = {line.name for line in before}
    num_added = sum(line.name not in names for line in after)
    note = f"{len(before)} nodes before, {len(after)} after; {_counts(gm)}, {num_added} added"
    return Graph(title, after, before, note)


def _counts(gm: fx.GraphModule) -> str:
    known = [record(node) for node in gm.graph.nodes]
    counts = {
        "folded": sum(len(each.folded) for each in known),
        "fused": sum(each.relu is not None for each in known),
        "refused": sum(len(each.refused) for each in known),
    }
    said = [f"{number} {what}" for what, number in counts.items() if number]
    return ", ".join(said) or "nothing folded or fused"


def _line(gm: fx.GraphModule, each: NodeText, notes: Iterator[Note]) -> Line:
    row = call_name(gm, each.node) if is_listed(gm, each.node) else ""
    return Line(each.node.name, _text(each), tuple(notes), row)


def _text(each: NodeText) -> str:
    return f"{each.statement}  # {each.module}" if each.module else each.statement


def _notes(node: fx.Node) -> Iterator[Note]:
    known = record(node)
    for name in known.folded:
        yield Note("folded", f"folded {name}")
    if known.relu:
        yield Note("fused", f"fused {known.relu}")
    if known.fused_into:
        yield Note("fused", f"fused into {known.fused_into}")
    if known.skipped:
        yield Note("left", "left in float by the recipe")
    for refusal in known.refused:
        yield Note("refused", str(refusal))


def _fates(gm: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Yield the names of modules that were folded, with what computes them now."""
    for node in gm.graph.nodes:
        for name in record(node).folded:
            yield name, f"folded into {node.name}"


def _note_before(
    captured: fx.GraphModule, node: fx.Node, fates: dict[str, str], left: set[str]
) -> Iterator[Note]:
    fate = fates.get(call_name(captured, node), fates.get(node.name))
    if fate is not None:
        yield Note("folded", fate)
    elif node.name not in left and node.op != "output":
        yield Note("removed", "taken out")
