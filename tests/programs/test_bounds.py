"""Bounds hold whatever comes in, and are given up where anything may come out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.int8 import kernels
from fxquant.numerics import tensors_in
from fxquant.programs import programs_of, why_unavailable
from fxquant.programs.bounds import Bounds
from fxquant.programs.steps import RequireNumbers
from tests.helpers import Net, needs_int8

pytestmark = [
    needs_int8,
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
]


def lowered(function: Any, *inputs: Tensor, **parts: Any) -> Any:
    torch.manual_seed(0)
    quantized = fxquant.quantize(Net(function, **parts).eval(), [inputs], progress=False)
    return fxquant.lower(quantized, inputs)


class Values(fx.Interpreter):
    """Runs a graph, and holds every bound against the values."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.bounds, self.seen = Bounds(gm), dict[str, float]()

    def run_node(self, node: fx.Node) -> Any:
        """Return its result."""
        value = super().run_node(node)
        if node.op != "output":
            self.bounds.visit(node, value)
            bound = self.bounds._known[node]
            if bound is not None:
                assert all(each.abs().max() <= bound * 1.0001 for each in tensors_in(value)), (
                    node.name
                )
                self.seen[node.name] = bound
        return value


def transformer(m: Any, x: Tensor) -> Tensor:
    x = torch.cat([m.start.expand(len(x), -1, -1), m.a(x)], 1) + m.places
    q, k, v = m.b(m.norm(x)).chunk(3, -1)
    x = x + m.c(F.scaled_dot_product_attention(q, k, v))
    result: Tensor = m.d(F.gelu(x).mean(1))
    return result


def test_bounds_hold_in_a_transformer() -> None:
    model = lowered(
        transformer,
        torch.randn(4, 6, 16),
        start=nn.Parameter(torch.randn(1, 1, 32)),
        places=nn.Parameter(torch.randn(1, 7, 32)),
        **{"a": nn.Linear(16, 32), "b": nn.Linear(32, 96), "c": nn.Linear(32, 32)},
        **{"d": nn.Linear(32, 5), "norm": nn.LayerNorm(32)},
    )
    values = Values(model)
    with torch.no_grad():
        values.run(torch.randn(4, 6, 16) * 1e6)
    quantized = [
        node.args[0] for node in model.graph.nodes
        if node.target is kernels.quantize and node.args[0].op != "placeholder"
    ]  # fmt: skip
    assert len(quantized) == 3
    assert all(values.bounds.are_numbers(each) for each in quantized)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.b(m.a(x).abs().log()),
        lambda m, x: m.b(m.a(x) / m.a(x).mean()),
        lambda m, x: m.b(m.a(x).exp()),
        lambda m, x: m.b(F.layer_norm(m.a(x), (8,), eps=0.0)),
        lambda m, x: m.b(m.a(x) * 1e20 * m.a(x)),
        lambda m, x: m.b(m.a(x).half().float()),
        lambda m, x: m.b(F.avg_pool2d(m.a(x), 2, divisor_override=1)),
    ],
    ids=["log", "quotient", "exp", "norm without eps", "large numbers", "float16", "sum"],
)
def test_what_may_overflow_or_be_undefined_has_no_bound(function: Any) -> None:
    model = lowered(function, torch.rand(2, 3, 8, 8), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    bounds = Values(model)
    with torch.no_grad():
        bounds.run(torch.rand(2, 3, 8, 8))
    *_, last = (node for node in model.graph.nodes if node.target is kernels.quantize)
    assert not bounds.bounds.are_numbers(last.args[0])


def gate(m: Any, x: Tensor) -> Tensor:
    x = F.silu(m.a(x))
    return m.b(x * torch.sigmoid(x.mean((2, 3), keepdim=True)))  # type: ignore[no-any-return]


def test_nothing_is_asked_of_what_is_bounded_until_it_no_longer_is() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = lowered(gate, x, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    (program,) = programs_of(model)._made.values()  # type: ignore[union-attr]
    assert sum(isinstance(step, RequireNumbers) for step in program.steps) == 1  # of the input
    assert torch.equal(model(x), model.forward(x))
    state = {name: each.clone() for name, each in model.state_dict().items()}
    state["a.bias"][3] = math.nan
    model.load_state_dict(state)
    with pytest.warns(RuntimeWarning, match="values to be quantized are NaN"):
        model(x)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.sub_(1.1).sqrt_()
    result: Tensor = m.b(y.view(y.shape))
    return result


def test_what_is_changed_in_its_place_is_looked_at() -> None:
    conv = nn.Conv2d(3, 8, 1)
    conv.weight.data.fill_(0.3)
    conv.bias.data.fill_(1.0)  # type: ignore[union-attr]
    x = torch.rand(2, 3, 8, 8) + 0.5
    model = lowered(in_place, x, a=conv, b=nn.Conv2d(8, 4, 1))
    assert torch.equal(model(x), model.forward(x))
    with pytest.warns(RuntimeWarning, match="values to be quantized are NaN"):
        model(x - 10)  # 1 - 1.1 behind the quantizer
