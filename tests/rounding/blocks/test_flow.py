"""Dominators are those that removing nodes shows."""

import random

import pytest
import torch
from torch import fx

from fxquant.rounding.blocks.flow import Flow


def random_graph(seed: int) -> fx.GraphModule:
    """Return additions of earlier values at random, behind one input."""
    drawn = random.Random(seed)
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(14):
        sources = [drawn.choice(nodes[-4:]) for _ in range(2)]
        nodes.append(graph.call_function(torch.add, tuple(sources)))
    graph.output(nodes[-1])
    return fx.GraphModule(torch.nn.Module(), graph)


def reached_without(gm: fx.GraphModule, removed: fx.Node) -> set[fx.Node]:
    reached: set[fx.Node] = set()
    for node in gm.graph.nodes:
        is_reached = node.op == "placeholder" or reached.intersection(node.all_input_nodes)
        if is_reached and node is not removed:
            reached.add(node)
    return reached


@pytest.mark.parametrize("seed", range(8))
def test_the_dominator_is_the_last_node_that_cuts_a_node_off(seed: int) -> None:
    gm = random_graph(seed)
    flow = Flow(gm)
    nodes = list(gm.graph.nodes)
    for number, node in enumerate(nodes[1:], start=1):
        cuts = [each for each in nodes[:number] if node not in reached_without(gm, each)]
        assert flow.dominator[node] is cuts[-1]


def test_sizes_and_parameters_are_no_data() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.w).view(x.size(0), -1).to(x.device)

    flow = Flow(fx.symbolic_trace(Model()))
    assert {node.name: [each.name for each in data] for node, data in flow.inputs.items()} == {
        "x": [],
        "mul": ["x"],
        "view": ["mul"],
        "to": ["view"],
        "output": ["to"],
    }
    view = next(node for node in flow.inputs if node.name == "view")
    assert [node.name for node in flow.others[view]] == ["size"]
