"""Memory is used again as soon as it is free, and never before."""

from typing import Any

import torch
from torch import fx

from fxquant.programs.buffers import Buffers, Lifetimes, is_dense, place_of


def test_a_piece_in_use_is_not_given_out_again() -> None:
    buffers = Buffers()
    a, b = (buffers.take((4, 4), (4, 1), torch.float32) for _ in range(2))
    assert place_of(a) != place_of(b)
    buffers.release(place_of(a))
    assert place_of(buffers.take((16,), (1,), torch.float32)) == place_of(a)
    assert buffers.num_bytes == 2 * 64


def test_a_piece_far_too_large_waits_for_something_larger() -> None:
    buffers = Buffers()
    large = buffers.take((1000,), (1,), torch.uint8)
    buffers.release(place_of(large))
    assert place_of(buffers.take((10,), (1,), torch.uint8)) != place_of(large)
    assert place_of(buffers.take((600,), (1,), torch.uint8)) == place_of(large)


def test_views_lie_in_the_piece_of_their_base() -> None:
    buffers = Buffers()
    a = buffers.take((2, 3), (3, 1), torch.uint8)
    assert buffers.holds(a[1].flatten())
    assert not buffers.holds(a.clone())


def test_dense_tensors_have_each_value_once() -> None:
    x = torch.ones(2, 3, 4)
    assert is_dense(x)
    assert is_dense(x.transpose(0, 2))
    assert is_dense(x[:, :, None])
    assert not is_dense(x[:, 1:])
    assert not is_dense(x[:1].expand(2, 3, 4))
    assert not is_dense(x[:0])


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
