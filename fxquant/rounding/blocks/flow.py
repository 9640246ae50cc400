"""Which values of a graph are computed from which, and which nodes all of it passes through.

Node d dominates node n if every way from the inputs to n goes through d; the nearest such d is n's
immediate dominator. In a graph without cycles one pass finds it: of a node that reads one value it
is that value's node, of one that reads several, the nearest node that dominates all of them.

Values that no rounding has reached are the same in the float graph: masks, what is embedded. One
that is read beside others, and is none that they are computed from, joins nothing: it is context.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxquant.graph.mutations import not_followed, read_instead
from fxquant.graph.operations import module_of, reads_values
from fxquant.graph.submodules import users_by_module
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer


class Flow:
    """Which values a graph computes from which: tensors that depend on its inputs.

    Args:
        gm: a quantized graph.
        with_context: tell context from what is joined; else all that is read is.
    """

    def __init__(self, gm: fx.GraphModule, *, with_context: bool = False) -> None:
        self.gm = gm
        self.callers = users_by_module(gm)
        self._position = {node: number for number, node in enumerate(gm.graph.nodes)}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        """Of each node with data, in execution order, the nodes whose data it reads."""
        self.others: dict[fx.Node, list[fx.Node]] = {}
        """And of every node, the parameters, the sizes and the context that it reads."""
        self.fixed: set[fx.Node] = set()
        """Nodes with data that no rounding has reached, if context is told from it."""
        self.users: dict[fx.Node, list[fx.Node]] = {}
        self.dominator: dict[fx.Node, fx.Node | None] = {}
        self._depth: dict[fx.Node | None, int] = {None: 0}
        self.missed = not_followed(gm)
        """Nodes whose values are not right where they are kept, with the change that they miss."""
        instead = read_instead(gm)
        for node in gm.graph.nodes:
            replaced = instead.get(node, {})
            sources = {
                replaced.get(each, each): reads_values(gm, node, each)
                for each in node.all_input_nodes
            }
            data = [each for each, is_read in sources.items() if is_read and each in self.inputs]
            is_fixed = with_context and self.fixed.issuperset(data) and not _rounds(gm, node)
            if is_fixed and (data or node.op == "placeholder"):
                self.fixed.add(node)
            data = self._without_context(data)
            self.others[node] = [each for each in sources if each not in data]
            for each in data:
                self.users[each].append(node)
            if data or node.op == "placeholder":
                self._add(node, data)

    def _add(self, node: fx.Node, data: list[fx.Node]) -> None:
        self.inputs[node], self.users[node] = data, []
        dominator: fx.Node | None = data[0] if data else None
        for each in data[1:]:
            dominator = self._meet(dominator, each)
        self.dominator[node] = dominator
        self._depth[node] = self._depth[dominator] + 1

    def _without_context(self, data: list[fx.Node]) -> list[fx.Node]:
        """Return what of the nodes that are read others are computed from, or are rounded."""
        rounded = [each for each in data if each not in self.fixed]
        if not rounded:
            return data
        shared: fx.Node | None = rounded[0]
        for each in rounded[1:]:
            shared = self._meet(shared, each)
        return [each for each in data if each in rounded or self._meet(each, shared) is each]

    def _meet(self, one: fx.Node | None, other: fx.Node | None) -> fx.Node | None:
        """Return the nearest node that dominates both, itself included."""
        while one is not other:
            if self._depth[one] >= self._depth[other]:
                assert one is not None
                one = self.dominator[one]
            else:
                assert other is not None
                other = self.dominator[other]
        return one

    def sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return the nodes in execution order."""
        return sorted(nodes, key=self._position.__getitem__)


def _rounds(gm: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(gm, node)
    return isinstance(module, QuantizedLayer) or as_own(module).rounds
