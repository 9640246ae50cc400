"""Verbs on graphs with integers in them: each does one thing to the graph and to its records."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import torch
from torch import fx, nn

import fxquant
from fxquant.graph.records import annotate, record
from fxquant.int8.integers import (
    affine_of,
    dequantize,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    mark_integers,
    only_user,
    quantize,
    replace_chain,
    value_of,
)
from fxquant.numerics.affine import AffineNumbers, Grid
from tests.helpers import Net, graph_text, node, outputs

HALVES = AffineNumbers(0.5, 3, Grid(0, 255))


def traced(function: Callable[[Any, Any], Any], **parts: Any) -> fx.GraphModule:
    return fxquant.trace(Net(function, **parts))


def test_quantize_and_dequantize_record_what_they_compute() -> None:
    gm = traced(lambda m, x: x.exp())
    exp = node(gm, "exp")
    with gm.graph.inserting_after(exp):
        integers = quantize(exp, HALVES, "quantizers_exp")
    in_float = dequantize(integers)
    exp.replace_all_uses_with(in_float, delete_user_cb=lambda user: user is not integers)
    gm.recompile()
    assert graph_text(gm) == cleandoc("""
        x = input()
        exp = x.exp()
        quantize = kernels.quantize(exp, 0.5, 3, 255)
        dequantize = kernels.dequantize(quantize, 0.5, 3)
        return dequantize
    """)
    assert affine_of(integers) == HALVES
    assert (value_of(integers), value_of(in_float)) == ("quantizers_exp", "quantizers_exp")
    assert record(in_float).integers is None
    assert is_quantize(integers)
    assert not is_quantize(in_float)
    assert integers_behind(in_float) is integers
    assert [integers_behind(each) for each in (integers, exp, 1, None)] == [None] * 4
    assert torch.equal(outputs(gm, torch.zeros(2)), torch.ones(2))


def test_a_node_computes_its_own_value_unless_it_is_told_otherwise() -> None:
    gm = traced(lambda m, x: x.exp())
    exp = node(gm, "exp")
    assert value_of(exp) == "exp"
    annotate(exp, value_of="relu")
    assert value_of(exp) == "relu"
    annotate(exp, value_of="")
    assert value_of(exp) == ""


def test_mark_integers_gives_all_users_floats() -> None:
    gm = traced(lambda m, x: (y := x.reshape(-1)).exp() + y)
    reshape = node(gm, "reshape")
    mark_integers(reshape, HALVES, "reshape")
    assert graph_text(gm) == cleandoc("""
        x = input()
        reshape = x.reshape(-1)
        dequantize = kernels.dequantize(reshape, 0.5, 3)
        exp = dequantize.exp()
        add = operator.add(exp, dequantize)
        return add
    """)
    assert affine_of(reshape) == HALVES


def test_only_user_is_the_one_that_alone_reads_a_result() -> None:
    gm = traced(lambda m, x: (y := x.exp()) + y * y.log())
    names = {each.name: only_user(each) for each in gm.graph.nodes}
    assert names["exp"] is None  # three users
    assert names["log"] is node(gm, "mul")
    assert names["output"] is None
    gm = traced(lambda m, x: (y := x.exp()) + y)
    assert only_user(node(gm, "exp")) is node(gm, "add")  # twice, but alone


def test_replace_chain_puts_one_node_in_the_place_of_several() -> None:
    gm = traced(lambda m, x: (y := m.fc(x).relu().exp()) + y, fc=nn.Linear(4, 4))
    chain = [node(gm, name) for name in ("fc", "relu", "exp")]
    annotate(chain[-1], integers=HALVES)
    with gm.graph.inserting_before(chain[-1]):
        by = gm.graph.call_function(torch.sin, (node(gm, "x"),))
    replace_chain(chain, by, "fc")
    gm.graph.lint()
    gm.recompile()
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = torch.sin(x)
        add = operator.add(fc, fc)
        return add
    """)
    assert (value_of(by), affine_of(by)) == ("exp", HALVES)
    x = torch.randn(3)
    assert torch.equal(outputs(gm, x), 2 * x.sin())


def test_replace_chain_leaves_the_new_nodes_own_use_of_the_chain() -> None:
    gm = traced(lambda m, x: x.exp().log())
    exp, log = node(gm, "exp"), node(gm, "log")
    with gm.graph.inserting_after(log):
        by = gm.graph.call_function(torch.sin, (exp,))
    replace_chain([log], by, "log")
    assert graph_text(gm) == cleandoc("""
        x = input()
        exp = x.exp()
        log = torch.sin(exp)
        return log
    """)


def test_drops_only_the_floats_that_nobody_reads() -> None:
    gm = traced(lambda m, x: x.exp())
    exp = node(gm, "exp")
    with gm.graph.inserting_after(exp):
        integers = quantize(exp, HALVES, "exp")
    dequantize(integers)
    assert drop_unused_dequantize(gm)
    assert [each.name for each in gm.graph.nodes] == ["x", "exp", "quantize", "output"]
    assert not drop_unused_dequantize(gm)
    exp.replace_all_uses_with(
        dequantize(integers), delete_user_cb=lambda user: user is not integers
    )
    assert not drop_unused_dequantize(gm)
