"""MarkFusedRelu knows every spelling of a ReLU, and what it can be fused behind."""

import math
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant.graph.records import record
from fxquant.passes import LiftFunctionals, MarkFusedRelu
from tests.helpers import Net, apply, graph_text, node, outputs, refusals, whole

Function = Callable[[Any, Any], Any]

INFINITE = (0.0, math.inf)
SPELLINGS: dict[str, tuple[Function | nn.Module, tuple[float, float]]] = {
    "ReLU": (nn.ReLU(), INFINITE),
    "ReLU, in place": (nn.ReLU(inplace=True), INFINITE),
    "ReLU6": (nn.ReLU6(), (0.0, 6.0)),
    "Hardtanh(0, 4)": (nn.Hardtanh(0, 4), (0.0, 4.0)),
    "F.relu": (lambda m, x: F.relu(x), INFINITE),
    "F.relu, in place": (lambda m, x: F.relu(input=x, inplace=True), INFINITE),
    "F.relu_": (lambda m, x: F.relu_(x), INFINITE),
    "torch.relu": (lambda m, x: torch.relu(x), INFINITE),
    ".relu": (lambda m, x: x.relu(), INFINITE),
    ".relu_": (lambda m, x: x.relu_(), INFINITE),
    ".clamp(min=0)": (lambda m, x: x.clamp(min=0), INFINITE),
    ".clamp(0)": (lambda m, x: x.clamp(0), INFINITE),
    ".clamp(0, 6)": (lambda m, x: x.clamp(0, 6), (0.0, 6.0)),
    ".clamp_(0, max=6)": (lambda m, x: x.clamp_(0, max=6), (0.0, 6.0)),
    ".clip(0.0, 4.5)": (lambda m, x: x.clip(0.0, 4.5), (0.0, 4.5)),
    ".clamp_min(0)": (lambda m, x: x.clamp_min(0), INFINITE),
    "torch.clamp": (lambda m, x: torch.clamp(x, 0, 6), (0.0, 6.0)),
    "torch.clamp, keywords": (lambda m, x: torch.clamp(input=x, max=6, min=0), (0.0, 6.0)),
    "torch.clip": (lambda m, x: torch.clip(x, min=0), INFINITE),
    "torch.clamp_min": (lambda m, x: torch.clamp_min(x, 0), INFINITE),
    "F.hardtanh": (lambda m, x: F.hardtanh(x, 0.0, 4.0), (0.0, 4.0)),
    "F.hardtanh, keywords": (lambda m, x: F.hardtanh(x, min_val=0), (0.0, 1.0)),
    "F.relu6": (lambda m, x: F.relu6(x), (0.0, 6.0)),
}
OTHERS: dict[str, Function | nn.Module] = {
    "Hardtanh": nn.Hardtanh(),
    "F.hardtanh": lambda m, x: F.hardtanh(x),
    "clamp(min=1)": lambda m, x: x.clamp(min=1),
    "clamp(min=-1)": lambda m, x: x.clamp(min=-1, max=1),
    "clamp(max=6)": lambda m, x: x.clamp(max=6),
    "clamp(0, 0)": lambda m, x: x.clamp(0, 0),
    "clamp(computed)": lambda m, x: x.clamp(min=m.low),
    "LeakyReLU": nn.LeakyReLU(),
    "Hardswish": nn.Hardswish(),
    "GELU": nn.GELU(),
    "a ReLU of its own": type("MyReLU", (nn.ReLU,), {"forward": lambda self, x: x.sigmoid()})(),
}
PRODUCERS: dict[str, tuple[Function, dict[str, Any]]] = {
    "conv": (lambda m, x: m.conv(x), {"conv": nn.Conv2d(4, 4, 1)}),
    "linear": (lambda m, x: m.fc(x), {"fc": nn.Linear(4, 4)}),
    "functional conv": (lambda m, x: F.conv2d(x, m.weight), {"weight": torch.randn(4, 4, 1, 1)}),
    "transposed conv": (lambda m, x: m.conv(x), {"conv": nn.ConvTranspose2d(4, 4, 1)}),
    "batch norm": (lambda m, x: m.bn(x), {"bn": nn.BatchNorm2d(4)}),
    "+": (lambda m, x: x.exp() + x, {}),
    "+=": (lambda m, x: plus_equal(x.exp(), x), {}),
    "torch.add": (lambda m, x: torch.add(x.exp(), x), {}),
    ".add": (lambda m, x: x.exp().add(x), {}),
    ".add_": (lambda m, x: x.exp().add_(x), {}),
}
NOT_PRODUCERS: dict[str, Function] = {
    "exp": lambda m, x: x.exp(),
    "-": lambda m, x: x - x.exp(),
    "add a number": lambda m, x: x + 1,
    "scaled add": lambda m, x: torch.add(x, x.exp(), alpha=2),
}


def plus_equal(a: Any, b: Any) -> Any:
    a += b
    return a


def relu_behind(producer: Function, relu: Function | nn.Module, **parts: Any) -> Net:
    if isinstance(relu, nn.Module):
        return Net(lambda m, x: m.act(producer(m, x)), act=relu, **parts)
    return Net(lambda m, x: relu(m, producer(m, x)), low=torch.tensor(0.0), **parts)


def test_marks_both_nodes_and_leaves_the_graph() -> None:
    model = Net(lambda m, x: m.relu(m.conv(x)), conv=nn.Conv2d(4, 4, 1), relu=nn.ReLU())
    gm = fxquant.trace(model)
    x = torch.randn(2, 4, 3, 3)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d
        relu = self.relu(conv) # ReLU
        return relu
    """)
    assert apply(MarkFusedRelu(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d · fused: relu
        relu = self.relu(conv) # ReLU · fused into conv
        return relu
    """)
    assert torch.equal(outputs(gm, x), outputs(model, x))
    assert not apply(MarkFusedRelu(), gm)


@pytest.mark.parametrize(("relu", "clamp"), SPELLINGS.values(), ids=SPELLINGS)
def test_knows_every_spelling(relu: Function | nn.Module, clamp: tuple[float, float]) -> None:
    model = relu_behind(lambda m, x: m.conv(x), relu, conv=nn.Conv2d(4, 4, 1))
    gm = fxquant.trace(model, leaf_modules=(type(relu),) if isinstance(relu, nn.Module) else ())
    assert apply(MarkFusedRelu(), gm)
    _, conv, activation, _ = gm.graph.nodes
    assert record(conv).relu == activation.name
    assert record(activation).fused_into == conv.name
    assert record(conv).clamp == record(activation).clamp == clamp
    x = 9 * torch.randn(2, 4, 3, 3)
    assert torch.equal(outputs(gm, x), gm.get_submodule("conv")(x).clamp(*clamp))


@pytest.mark.parametrize("relu", OTHERS.values(), ids=OTHERS)
def test_marks_no_other_activation(relu: Function | nn.Module) -> None:
    model = relu_behind(lambda m, x: m.conv(x), relu, conv=nn.Conv2d(4, 4, 1))
    gm = fxquant.trace(model, leaf_modules=(type(relu),) if isinstance(relu, nn.Module) else ())
    assert not apply(MarkFusedRelu(), gm)
    assert refusals(gm) == {}


@pytest.mark.parametrize(("producer", "parts"), PRODUCERS.values(), ids=PRODUCERS)
def test_marks_a_relu_behind(producer: Function, parts: dict[str, Any]) -> None:
    gm = fxquant.trace(relu_behind(producer, lambda m, x: x.relu(), **parts))
    apply(LiftFunctionals(), gm)
    assert apply(MarkFusedRelu(), gm)
    relu = node(gm, "relu")
    assert isinstance(relu.args[0], torch.fx.Node)
    assert record(relu).fused_into == relu.args[0].name


@pytest.mark.parametrize("producer", NOT_PRODUCERS.values(), ids=NOT_PRODUCERS)
def test_marks_no_relu_behind(producer: Function) -> None:
    gm = fxquant.trace(relu_behind(producer, lambda m, x: x.relu()))
    assert not apply(MarkFusedRelu(), gm)


def test_refuses_a_relu_whose_input_is_used_elsewhere() -> None:
    gm = fxquant.trace(
        Net(lambda m, x: (y := m.conv(x)).relu() + y.relu() * y, conv=nn.Conv2d(4, 4, 1))
    )
    assert not apply(MarkFusedRelu(), gm)
    assert refusals(gm) == {
        "relu": ("not fused: conv also feeds relu_1, mul",),
        "relu_1": ("not fused: conv also feeds relu, mul",),
    }


def test_marks_each_call_of_a_shared_conv() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.conv(m.conv(x).relu()).relu(), conv=nn.Conv2d(4, 4, 1)))
    assert apply(MarkFusedRelu(), gm)
    assert [record(node(gm, name)).relu for name in ("conv", "conv_1")] == ["relu", "relu_1"]


def test_convert_marks_a_relu_whose_batchnorm_it_folded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    prepared = whole(fxquant.prepare(model, "minmax"))
    assert record(node(prepared, "_1")).relu == "_2"
    fxquant.calibrate(prepared, [torch.randn(8, 4)], progress=False)
    quantized = whole(fxquant.convert(prepared))
    assert record(node(quantized, "_0")).relu == "_2"
    assert record(node(quantized, "_2")).fused_into == "_0"
