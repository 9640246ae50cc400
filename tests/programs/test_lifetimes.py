"""Memory stays as long as somebody reads it, through views too."""

from typing import Any

import torch
from torch import fx

from fxquant.programs.buffers import Buffers, place_of
from fxquant.programs.lifetimes import Lifetimes


def test_a_view_keeps_the_memory_of_its_base() -> None:
    def function(x: Any) -> Any:
        a = x.relu()
        view = a.flatten()
        b = a.exp()
        return view.sum() + b.sum()

    graph, buffers = fx.symbolic_trace(function).graph, Buffers()
    nodes = {node.name: node for node in graph.nodes}
    lifetimes = Lifetimes(graph, buffers)
    piece = buffers.take((2, 2), (2, 1), torch.float32)
    values = {"relu": piece, "flatten": piece.flatten()}
    held = {}
    for name, node in nodes.items():
        lifetimes.begin(node, values.get(name, torch.ones(2, 2)))
        lifetimes.end(node)
        held[name] = buffers.holds(piece)
    assert held == {
        **{"x": True, "relu": True, "flatten": True, "exp": True},  # read here for the last time
        **{"sum_1": False, "sum_2": False, "add": False, "output": False},
    }


def test_what_nobody_reads_is_free_at_once() -> None:
    def function(x: Any) -> Any:
        x.relu()
        return x

    graph, buffers = fx.symbolic_trace(function).graph, Buffers()
    lifetimes, relu = Lifetimes(graph, buffers), graph.find_nodes(op="call_method")[0]
    piece = buffers.take((2,), (1,), torch.float32)
    lifetimes.begin(relu, piece)
    assert lifetimes.end(relu) == [relu]
    assert not buffers.holds(piece)
    assert place_of(piece) == place_of(buffers.take((2,), (1,), torch.float32))
