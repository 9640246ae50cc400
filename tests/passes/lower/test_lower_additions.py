"""LowerAdditions: additions between quantizers work on integers."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.graph.records import value_of
from fxquant.int8.integers import affine_of
from fxquant.int8.modules import Int8Add
from fxquant.passes import LowerAdditions, SinkDequantize, SplitQuantizers
from tests.helpers import (
    Net,
    apply,
    check_lowering,
    graph_text,
    node,
    quantizer,
    short_text,
)

Function = Callable[[Any, Any], Any]


def on_integers(function: Function, **parts: Any) -> fx.GraphModule:
    """Return the graph of `function`, in which `m.q`, `m.p` and `m.out` are quantizers."""
    quantizers = {"q": quantizer(0.02, 90), "p": quantizer(0.03), "out": quantizer(0.04, 50)}
    gm = fxquant.trace(Net(function, **quantizers, **parts))
    apply(SplitQuantizers(), gm)
    apply(SinkDequantize(), gm)
    return gm


def check(gm: fx.GraphModule, x: Tensor) -> None:
    check_lowering(LowerAdditions(), gm, x)


def additions(gm: fx.GraphModule) -> list[Int8Add]:
    return [module for module in gm.modules() if isinstance(module, Int8Add)]


def test_takes_the_relu_and_the_quantization_along() -> None:
    gm = on_integers(lambda m, x: m.out((m.q(x) + m.p(x.exp())).relu()))
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 90, 255)
        dequantize = kernels.dequantize(quantize, 0.02, 90)
        exp = x.exp()
        quantize_1 = kernels.quantize(exp, 0.03, 100, 255)
        dequantize_1 = kernels.dequantize(quantize_1, 0.03, 100)
        add = operator.add(dequantize, dequantize_1)
        relu = add.relu()
        quantize_2 = kernels.quantize(relu, 0.04, 50, 255)
        dequantize_2 = kernels.dequantize(quantize_2, 0.04, 50)
        return dequantize_2
    """)
    check(gm, torch.randn(2, 4, 5, 5))
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 90, 255)
        exp = x.exp()
        quantize_1 = kernels.quantize(exp, 0.03, 100, 255)
        add = self.additions.add(quantize, quantize_1) # Int8Add → uint8 scale=0.04 zero_point=50
        dequantize_2 = kernels.dequantize(add, 0.04, 50)
        return dequantize_2
    """)
    (module,) = additions(gm)
    assert module.result[2:] == (50, 255)
    assert affine_of(node(gm, "add")) == module.output
    assert value_of(node(gm, "add")) == "out"


LOWERED: dict[str, Function] = {
    "+": lambda m, x: m.out(m.q(x) + m.p(x.exp())),
    "+=": lambda m, x: m.out(plus_equal(m.q(x), m.p(x.exp()))),
    "torch.add": lambda m, x: m.out(torch.add(m.q(x), m.p(x.exp()))),
    "add_": lambda m, x: m.out(m.q(x).add_(m.p(x.exp()))),
    "twice the same": lambda m, x: m.out((y := m.q(x)) + y),
    "ReLU6": lambda m, x: m.out(F.relu6(m.q(x) + m.p(x.exp()))),
    "clamp at 0.3": lambda m, x: m.out((m.q(x) + m.p(x.exp())).clamp(0, 0.3)),
    "broadcast": lambda m, x: m.out(m.q(x) + m.p(x.exp()).amax((2, 3), keepdim=True)),
    "another is read too": lambda m, x: m.out((y := m.q(x)) + m.p(x.exp())) * y.exp(),
    "two, one behind the other": lambda m, x: m.out(m.out(m.q(x) + m.p(x.exp())) + m.q(x)),
    "operand behind a pool": lambda m, x: m.out((y := m.q(x)) + F.max_pool2d(y, 3, 1, 1)),
}


def plus_equal(a: Any, b: Any) -> Any:
    a += b
    return a


@pytest.mark.parametrize("function", LOWERED.values(), ids=LOWERED)
def test_lowers_every_spelling(function: Function) -> None:
    gm = on_integers(function)
    check(gm, torch.randn(2, 4, 6, 6))
    assert len(additions(gm)) == graph_text(gm).count("Int8Add") >= 1


NOT_LOWERED: dict[str, Function] = {
    "result in float": lambda m, x: m.q(x) + m.p(x.exp()),
    "result behind a ReLU in float": lambda m, x: (m.q(x) + m.p(x.exp())).relu(),
    "operand in float": lambda m, x: m.out(m.q(x) + x),
    "number": lambda m, x: m.out(m.q(x) + 1),
    "scaled": lambda m, x: m.out(torch.add(m.q(x), m.p(x), alpha=2)),
    "SiLU behind": lambda m, x: m.out(F.silu(m.q(x) + m.p(x.exp()))),
    "read by others too": lambda m, x: m.out(y := m.q(x) + m.p(x.exp())) * y,
    "ReLU read by others too": lambda m, x: m.out(y := (m.q(x) + m.p(x.exp())).relu()) * y,
    "-": lambda m, x: m.out(m.q(x) - m.p(x.exp())),
}


@pytest.mark.parametrize("function", NOT_LOWERED.values(), ids=NOT_LOWERED)
def test_leaves_all_other_additions(function: Function) -> None:
    gm = on_integers(function)
    before = graph_text(gm)
    assert not apply(LowerAdditions(), gm)
    assert graph_text(gm) == before
    assert additions(gm) == []


def test_takes_another_name_if_the_model_has_additions() -> None:
    gm = on_integers(lambda m, x: m.additions(m.out(m.q(x) + m.p(x.exp()))), additions=nn.Sigmoid())
    check(gm, torch.randn(2, 4))
    assert "self.additions_1.add(" in graph_text(gm)


def test_an_attribute_may_be_called_additions() -> None:
    gm: Any = on_integers(lambda m, x: m.out(m.q(x) + m.p(x.exp())))
    gm.additions = 3
    check(gm, torch.randn(2, 4))
    assert "self.additions_1.add(" in graph_text(gm)
