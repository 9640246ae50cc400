"""FoldConstants puts a parameter in the place of what is computed from parameters alone."""

import copy
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.passes import FoldConstants
from tests.helpers import Net, apply, graph_text, outputs, refusals, relative_error

Function = Callable[[Any, Any], Any]


class Reads(fx.Tracer):
    """A tracer that notes reads of buffers as those of parameters."""

    proxy_buffer_attributes = True


def traced(model: nn.Module) -> fx.GraphModule:
    copied = copy.deepcopy(model)
    return fx.GraphModule(copied, Reads().trace(copied))


class Standardized(nn.Conv2d):
    """A convolution with a standardized weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.norm(), self.bias)


def net(function: Function) -> Net:
    return Net(
        function,
        w=nn.Parameter(torch.randn(4, 4)),
        q=nn.Parameter(torch.randn(2)),
        v=nn.Parameter(torch.randn(2)),
        table=torch.arange(4.0),
        index=torch.tensor([3, 1, 0, 2]),
        fc=nn.Linear(4, 4),
        mlp=nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)),
        noise=nn.Dropout(),
    ).eval()


FOLDED: dict[str, tuple[Function, list[str]]] = {
    "a product": (lambda m, x: x * (m.w * 2).exp(), ["w"]),
    "a transposed one": (lambda m, x: x @ m.w.t(), ["w"]),
    "put together": (lambda m, x: x + torch.cat((m.q, torch.zeros_like(m.v))), ["cat"]),
    "a table": (lambda m, x: x + m.table[m.index].view(4), ["view"]),
    "a module's result": (lambda m, x: x + m.mlp(m.w), ["add"]),
    "a part of a tuple": (lambda m, x: x * m.w.chunk(2)[0].sum(), ["w"]),
    "a size": (lambda m, x: x.reshape(m.w.shape[0], -1) + m.w.size(1) / 2, []),
    "a shape": (lambda m, x: x.reshape(m.w.shape), []),
    "a constant": (lambda m, x: x + torch.ones(4).cumsum(0) * m.table, ["table"]),
    "what is read twice": (lambda m, x: x * (y := m.w.exp()) + y.sum(), ["sum", "w"]),
    "what is given back": (lambda m, x: (x, m.w.exp()), ["w"]),
    "in place, on its own": (lambda m, x: x * m.w.exp().add_(1), ["w"]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "names"), FOLDED.values(), ids=FOLDED)
def test_folds_and_computes_the_same(function: Function, names: list[str]) -> None:
    model, x = net(function), torch.randn(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gm = traced(model)
    assert apply(FoldConstants(), gm)
    torch.testing.assert_close(outputs(gm, x), outputs(model, x), rtol=1e-6, atol=1e-6)
    assert not apply(FoldConstants(), gm)
    assert not gm.graph.find_nodes(op="call_module")
    assert len(list(gm.graph.find_nodes(op="get_attr"))) == len(names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_standardized_weight_becomes_the_weight_of_a_layer() -> None:
    model = nn.Sequential(Standardized(3, 4, 3), nn.ReLU())
    gm = traced(model)
    assert apply(FoldConstants(), gm)
    assert graph_text(gm) == cleandoc("""
        input_1 = input()
        _0_weight_1 = self.0.weight
        _0_bias = self.0.bias
        conv2d = torch.conv2d(input_1, _0_weight_1, _0_bias)
        _1 = self.1(conv2d) # ReLU
        return _1
    """)
    x = torch.randn(2, 3, 8, 8)
    quantized = fxquant.quantize(model, [x], "minmax")
    assert type(quantized.get_submodule("0")).__name__ == "QuantizedConv2d"
    assert relative_error(outputs(quantized, x), outputs(model, x)) < 0.05


def test_what_is_made_of_a_called_modules_weight_stands_beside_it() -> None:
    model, x = net(lambda m, x: m.fc(x) + F.linear(x, m.fc.weight * 2)), torch.randn(2, 4)
    gm = traced(model)
    assert apply(FoldConstants(), gm)
    assert set(gm.state_dict()) == {"fc.weight", "fc.bias", "fc_weight"}
    assert (
        relative_error(outputs(fxquant.quantize(model, [x], "minmax"), x), outputs(model, x)) < 0.05
    )


def test_parameters_stay_parameters_and_buffers_buffers() -> None:
    gm = traced(net(lambda m, x: x * m.w.exp() + m.table.exp() + (m.w > 0)))
    assert apply(FoldConstants(), gm)
    assert [name for name, _ in gm.named_parameters()] == ["w"]
    assert {name: each.dtype for name, each in gm.named_buffers()} == {
        "table": torch.float32, "w_1": torch.bool
    }  # fmt: skip


KEPT: dict[str, Function] = {
    "what depends on the input": lambda m, x: x * (m.w * x.mean()),
    "what depends on a size": lambda m, x: x + m.table.expand(x.shape[0], 4),
    "random numbers": lambda m, x: x * torch.rand_like(m.w) * 0,
    "noise": lambda m, x: x * F.dropout(m.w, training=True) * 0,
    "a device": lambda m, x: x.to(m.w.device),
    "a type": lambda m, x: x.to(m.w.dtype),
    "no parameter": lambda m, x: x + torch.arange(4),
    "what is written into": lambda m, x: x * m.table.add_(1).exp(),
    "what is written into later": lambda m, x: (x * m.table.exp(), m.table.view(4).mul_(2)),
    "a part of which is written into": lambda m, x: (
        m.table[:2].fill_(x.mean()), x * m.table.exp()
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_leaves_what_is_no_constant(function: Function) -> None:
    gm = traced(net(function))
    before = graph_text(gm)
    assert not apply(FoldConstants(), gm)
    assert graph_text(gm) == before
    assert refusals(gm) == {}


def test_a_state_is_counted_on_as_before() -> None:
    model = net(lambda m, x: x * m.table.exp() + m.table.add_(1))
    gm = traced(model)
    apply(FoldConstants(), gm)
    x = torch.randn(4)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(gm(x), model(x))


def test_makes_no_parameter_that_is_much_larger_than_its_source() -> None:
    model = net(lambda m, x: x + m.q[0].exp().expand(100, 4))
    gm = traced(model)
    assert apply(FoldConstants(max_values=399), gm)  # what is before it is folded
    assert refusals(gm) == {"expand": ("not computed once: it has 400 values, and is made of 2",)}
    assert [tuple(each.shape) for each in gm.parameters()] == [()]
    assert apply(FoldConstants(max_values=400), gm)
    assert gm.get_parameter("q").stride() == (4, 1)


def test_draws_no_random_numbers() -> None:
    gm = traced(net(KEPT["random numbers"]))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    apply(FoldConstants(), gm)
    assert torch.equal(torch.rand(1), expected)
