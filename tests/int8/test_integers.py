"""Verbs on graphs with integers in them: each does one thing to the graph and to its records."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import torch
from torch import fx

import fxquant
from fxquant.graph.records import record, value_of
from fxquant.int8.integers import (
    affine_of,
    dequantize,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    mark_integers,
    quantize,
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
    assert is_quantize(gm, integers)
    assert not is_quantize(gm, in_float)
    assert integers_behind(in_float) is integers
    assert [integers_behind(each) for each in (integers, exp, 1, None)] == [None] * 4
    assert torch.equal(outputs(gm, torch.zeros(2)), torch.ones(2))


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
