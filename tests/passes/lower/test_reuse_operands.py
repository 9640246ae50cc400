"""ReuseOperands: an operand is overwritten where nobody can tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from benchmarks.graphs.alone import sibling
from fxquant.int8.modules import Int8Conv
from fxquant.passes import (
    LowerAdditions,
    LowerAverages,
    LowerLayers,
    ReuseOperands,
    SinkDequantize,
    SplitQuantizers,
)
from tests.helpers import Net, apply, assert_same, graph_text, needs_int8, outputs, simulated

pytestmark = needs_int8
Function = Callable[[Any, Any], Any]


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def parts() -> dict[str, nn.Module]:
    return {name: conv() for name in "abcde"}


def on_integers(function: Function, x: Tensor) -> tuple[fx.GraphModule, Any]:
    """Return the lowered graph of `function`, and what its simulation makes of `x`."""
    quantized = simulated(Net(function, **parts()), x)
    gm = fxquant.trace(quantized)
    for each in (
        SplitQuantizers(), SinkDequantize(), LowerLayers(), LowerAdditions(), LowerAverages()
    ):  # fmt: skip
        apply(each, gm)
    return gm, outputs(quantized, x)


def adding(gm: fx.GraphModule) -> list[Int8Conv]:
    return [each for each in gm.modules() if isinstance(each, Int8Conv) and each.other is not None]


def check(function: Function, x: Tensor | None = None) -> list[bool]:
    """Run the pass, check the outputs twice, and return what operands are overwritten."""
    x = torch.randn(2, 4, 8, 8) if x is None else x
    gm, expected = on_integers(function, x)
    text = graph_text(gm)
    assert all(module.keep_other for module in adding(gm))
    assert apply(ReuseOperands(), gm) is not all(module.keep_other for module in adding(gm))
    assert graph_text(gm) == text
    assert_same(outputs(gm, x), expected)
    assert_same(outputs(gm, x), expected)
    assert not apply(ReuseOperands(), gm)
    return [not module.keep_other for module in adding(gm)]


REUSED: dict[str, Function] = {
    "the result of a layer": lambda m, x: m.c(m.b(m.a(x).relu()) + m.d(x)),
    "read before by the layer in front": lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y),
    "the result of a pool": lambda m, x: m.c(m.b(m.a(x).relu()) + F.max_pool2d(x, 3, 1, 1)),
    "read before by a pool": lambda m, x: m.c(
        m.b(F.max_pool2d(y := m.a(x).relu(), 3, 1, 1)) + y
    ),
    "read before in float": lambda m, x: m.c(m.b((y := m.a(x).relu()).exp()) + y),
    "returned in float": lambda m, x: (m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y), y),
    "read in float later": lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y) * y.exp(),
    "asked for its shape": lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y)
    * y.size(0),
    "a concatenation": lambda m, x: (
        z := torch.cat([x[:, :2], y[:, :2]], 1) if (y := m.a(x)) is not None else None,
        m.c(m.b(m.d(z).relu()) + z),
    )[-1],
    "one after the other": lambda m, x: (
        y := (m.b(m.d(y := m.a(x).relu()).relu()) + y).relu(),
        m.c((m.e(m.d(y).relu()) + y).relu()),
    )[-1],
}  # fmt: skip


@pytest.mark.parametrize("function", REUSED.values(), ids=REUSED)
def test_overwrites_an_operand_that_nobody_reads_later(function: Function) -> None:
    reused = check(function)
    assert reused
    assert all(reused)


KEPT: dict[str, Function] = {
    "it is the layer's input": lambda m, x: m.c(m.b(y := m.a(x).relu()) + y),
    "a layer reads it later": lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y) + m.e(y),
    "a reshape of it is read later": lambda m, x: (
        y := m.a(x).relu(), v := y.reshape(2, 2, 2, 8, 8),
        m.c(m.b(m.d(y).relu()) + y) + m.e(v.flatten(1, 2)),
    )[-1],
    "a slice of it is read later": lambda m, x: (
        y := m.a(x).relu(), v := y[:, :, 1:],
        m.c(m.b(m.d(y).relu()) + y)[:, :, 1:] + m.e(v),
    )[-1],
    "a part of it is read later": lambda m, x: (
        y := m.a(x).relu(), v := y.chunk(2, 1), z := m.c(m.b(m.d(y).relu()) + y),
        z + m.e(torch.cat([v[1], v[0]], 1)),
    )[-1],
    "a transpose of it is the layer's input": lambda m, x: m.c(
        m.b((y := m.a(x).relu()).transpose(2, 3)) + y
    ),
    "it is a view itself": lambda m, x: (
        y := m.a(x).relu(), v := y.transpose(2, 3), m.c(m.b(m.d(v).relu()) + v) + m.e(y),
    )[-1],
    "it is a slice itself": lambda m, x: (
        y := torch.cat([x.flip(1), x], 1), m.c(m.b(m.d(x).relu()) + y[:, :4]) + m.e(y[:, 4:]),
    )[-1],
}  # fmt: skip


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_keeps_an_operand_that_may_be_read_later(function: Function) -> None:
    reused = check(function)
    assert reused
    assert not any(reused)


def test_a_broadcast_operand_is_never_overwritten() -> None:
    check(lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y.amax((2, 3), keepdim=True)))


def test_another_graph_over_the_modules_keeps_its_operands() -> None:
    gm, _ = on_integers(REUSED["the result of a layer"], torch.randn(2, 4, 8, 8))
    other = sibling(gm)
    assert apply(ReuseOperands(), gm)
    assert not any(module.keep_other for module in adding(gm))
    assert all(module.keep_other for module in adding(other))


def test_works_without_a_batch() -> None:
    reused = check(lambda m, x: m.c(m.b(m.d(y := m.a(x).relu()).relu()) + y), torch.randn(4, 8, 8))
    assert reused == [True]


def test_a_graph_without_integers_stays_as_it_is() -> None:
    assert not apply(ReuseOperands(), fxquant.trace(nn.Sequential(conv())))
