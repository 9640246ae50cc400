"""What a reconstruction looks at: layers in order, their calls, the activation behind them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.rounding.methods.activations import Clamp, Differentiated, Identity
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs
from tests.helpers import Net, node, refusals, whole

Function = Callable[[Any, Any], Any]


def quantized(function: Function, recipe: Recipe | None = None, **parts: Any) -> fx.GraphModule:
    """Return the quantized graph of a model with linear layers a to d of 4 values."""
    linear = {name: nn.Linear(4, 4) for name in "abcd"}
    model = Net(function, **linear, **parts)
    batches = [torch.randn(8, 4) for _ in range(2)]
    recipe = recipe or Recipe.minmax()
    return whole(fxquant.quantize(model, batches, recipe, progress=False))


def only(gm: fx.GraphModule) -> Subgraph:
    (subgraph,) = find_subgraphs(gm)
    return subgraph


def names(subgraphs: list[Subgraph]) -> list[str]:
    return [each.name for each in subgraphs]


def calls(subgraph: Subgraph) -> list[tuple[str, str]]:
    return [(call.node.name, call.output.name) for call in subgraph.calls]


CLAMPS: dict[str, tuple[Function, nn.Module, float]] = {
    "ReLU": (lambda m, y: m.f(y), nn.ReLU(), math.inf),
    "ReLU in place": (lambda m, y: m.f(y), nn.ReLU(inplace=True), math.inf),
    "F.relu": (lambda m, y: F.relu(y), nn.Identity(), math.inf),
    "y.relu": (lambda m, y: y.relu(), nn.Identity(), math.inf),
    "ReLU6": (lambda m, y: m.f(y), nn.ReLU6(), 6),
    "F.relu6": (lambda m, y: F.relu6(y), nn.Identity(), 6),
    "Hardtanh": (lambda m, y: m.f(y), nn.Hardtanh(0, 0.5), 0.5),
    "clamp": (lambda m, y: torch.clamp(y, 0, 0.25), nn.Identity(), 0.25),
    "clamp(min=0)": (lambda m, y: y.clamp(min=0), nn.Identity(), math.inf),
}
RECIPES = pytest.mark.parametrize(
    "recipe", [Recipe.minmax(), Recipe.aciq()], ids=["minmax", "aciq"]
)


@RECIPES
@pytest.mark.parametrize(("function", "module", "high"), CLAMPS.values(), ids=CLAMPS)
def test_a_relu_behind_the_layer_is_a_clamp(
    function: Function, module: nn.Module, high: float, recipe: Recipe
) -> None:
    gm = quantized(lambda m, x: function(m, m.a(x)), recipe, f=module)
    subgraph = only(gm)
    assert subgraph.activation == Clamp(0.0, high)
    (call,) = subgraph.calls
    assert call.node.name == "a"
    assert call.output.args[0] is call.node


OTHERS: dict[str, tuple[Function, nn.Module, Callable[[Tensor], Tensor]]] = {
    "SiLU": (lambda m, y: m.f(y), nn.SiLU(), F.silu),
    "SiLU in place": (lambda m, y: m.f(y), nn.SiLU(inplace=True), F.silu),
    "GELU": (lambda m, y: m.f(y), nn.GELU(), F.gelu),
    "Hardswish": (lambda m, y: m.f(y), nn.Hardswish(), F.hardswish),
    "Hardtanh(-1, 1)": (lambda m, y: m.f(y), nn.Hardtanh(), F.hardtanh),
    "F.gelu(tanh)": (
        lambda m, y: F.gelu(y, approximate="tanh"), nn.Identity(), nn.GELU("tanh")
    ),
    "F.leaky_relu(y, 0.3)": (
        lambda m, y: F.leaky_relu(y, 0.3), nn.Identity(), nn.LeakyReLU(0.3)
    ),
    "F.elu(input=y, alpha=2)": (
        lambda m, y: F.elu(input=y, alpha=2.0), nn.Identity(), nn.ELU(2.0)
    ),
    "F.softplus(y, 2)": (lambda m, y: F.softplus(y, 2.0), nn.Identity(), nn.Softplus(2.0)),
    "F.silu in place": (lambda m, y: F.silu(y, inplace=True), nn.Identity(), F.silu),
    "y.sigmoid()": (lambda m, y: y.sigmoid(), nn.Identity(), torch.sigmoid),
    "y.tanh_()": (lambda m, y: y.tanh_(), nn.Identity(), torch.tanh),
    "torch.tanh(y)": (lambda m, y: torch.tanh(y), nn.Identity(), torch.tanh),
}  # fmt: skip


@RECIPES
@pytest.mark.parametrize(("function", "module", "expected"), OTHERS.values(), ids=OTHERS)
def test_any_other_activation_is_differentiated(
    function: Function, module: nn.Module, expected: Callable[[Tensor], Tensor], recipe: Recipe
) -> None:
    subgraph = only(quantized(lambda m, x: function(m, m.a(x)), recipe, f=module))
    assert isinstance(subgraph.activation, Differentiated)
    y = torch.randn(50) * 3
    assert torch.equal(subgraph.activation(y.clone()), expected(y))
    (call,) = subgraph.calls
    assert call.output in call.node.users


NONE: dict[str, Function] = {
    "nothing": lambda m, x: m.a(x),
    "two users": lambda m, x: m.relu(y := m.a(x)) + y,
    "two activations": lambda m, x: m.relu(y := m.a(x)) + m.silu(y),
    "an addition": lambda m, x: m.relu(m.a(x) + x),
    "an argument of the addition": lambda m, x: m.relu(x + m.a(x)),
    "a view": lambda m, x: m.relu(m.a(x).flatten()),
    "another function": lambda m, x: F.softmax(m.a(x), dim=1),
    "a clamp on both sides": lambda m, x: m.a(x).clamp(-0.1, 0.1),
    "a parameter": lambda m, x: m.prelu(m.a(x)),
    "a computed option": lambda m, x: F.leaky_relu(m.a(x), 1 / x.shape[1]),
}


@pytest.mark.parametrize("function", NONE.values(), ids=NONE)
def test_there_is_no_activation_behind_anything_else(function: Function) -> None:
    parts: dict[str, Any] = {"relu": nn.ReLU(), "silu": nn.SiLU(), "prelu": nn.PReLU()}
    subgraph = only(quantized(function, **parts))
    assert subgraph.activation == Identity()
    assert calls(subgraph) == [("a", "a")]


def test_layers_of_a_chain_are_in_execution_order() -> None:
    gm = quantized(lambda m, x: m.b(m.relu(m.d(m.c(m.a(x))))), relu=nn.ReLU())
    subgraphs = find_subgraphs(gm)
    assert names(subgraphs) == ["a", "c", "d", "b"]
    assert [calls(each) for each in subgraphs] == [
        [("a", "a")], [("c", "c")], [("d", "relu")], [("b", "b")]
    ]  # fmt: skip
    assert all(each.layer is gm.get_submodule(each.name) for each in subgraphs)
    assert not any(each.ahead for each in subgraphs)


def test_layers_left_in_float_are_left_out() -> None:
    gm = quantized(lambda m, x: m.c(m.b(m.a(x))), Recipe.minmax(skip=["b"]))
    assert names(find_subgraphs(gm)) == ["a", "c"]


def test_a_shared_layer_waits_for_the_inputs_of_all_its_calls() -> None:
    def pyramid(m: Any, x: Any) -> Any:
        level1 = m.a(x)
        level2 = m.b(level1.relu())
        return m.d(level1.relu()) + m.d(m.c(level2))

    subgraphs = find_subgraphs(quantized(pyramid))
    assert names(subgraphs) == ["a", "b", "c", "d"]
    assert calls(subgraphs[3]) == [("d", "d"), ("d_1", "d_1")]
    assert subgraphs[3].ahead == frozenset()


def test_a_recurrence_looks_ahead_from_the_second_call_on() -> None:
    gm = quantized(lambda m, x: m.b(m.a(m.a(m.a(x)))))
    subgraphs = find_subgraphs(gm)
    assert names(subgraphs) == ["a", "b"]
    assert subgraphs[0].ahead == {node(gm, "a_1"), node(gm, "a_2")}
    assert subgraphs[1].ahead == frozenset()


def test_a_recurrence_over_two_layers_starts_with_the_first_call() -> None:
    gm = quantized(lambda m, x: m.c(m.b(m.a(m.b(m.a(x))))))
    subgraphs = find_subgraphs(gm)
    assert names(subgraphs) == ["a", "b", "c"]
    assert [each.ahead for each in subgraphs] == [
        {node(gm, "a_1")}, {node(gm, "b_1")}, frozenset()
    ]  # fmt: skip


def test_a_layer_behind_a_recurrence_waits_for_it() -> None:
    gm = quantized(lambda m, x: m.d(x) + m.d(m.a(m.a(x))))  # d depends on a, a on itself alone
    subgraphs = find_subgraphs(gm)
    assert names(subgraphs) == ["a", "d"]
    assert [each.ahead for each in subgraphs] == [{node(gm, "a_1")}, frozenset()]


SAME: dict[str, tuple[Function, Function]] = {
    "modules": (lambda m, y: m.relu(y), lambda m, y: m.relu(y)),
    "ReLU written twice": (lambda m, y: m.relu(y), lambda m, y: F.relu(y)),
    "functions": (lambda m, y: F.elu(y, 2.0), lambda m, y: F.elu(y, 2.0)),
    "methods": (lambda m, y: y.sigmoid(), lambda m, y: y.sigmoid()),
}


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_calls_share_their_activation(first: Function, second: Function) -> None:
    gm = quantized(lambda m, x: first(m, m.a(x)) - second(m, m.a(x * 2)), relu=nn.ReLU())
    subgraph = only(gm)
    assert subgraph.activation != Identity()
    assert [call.node.name for call in subgraph.calls] == ["a", "a_1"]
    assert all(call.output in call.node.users for call in subgraph.calls)


DIFFERENT: dict[str, tuple[Function, Function]] = {
    "ReLU and none": (lambda m, y: F.relu(y), lambda m, y: y * 2),
    "ReLU and ReLU6": (lambda m, y: F.relu(y), lambda m, y: F.relu6(y)),
    "options": (lambda m, y: F.elu(y, 2.0), lambda m, y: F.elu(y, 1.0)),
    "keywords": (lambda m, y: F.gelu(y), lambda m, y: F.gelu(y, approximate="tanh")),
}


@pytest.mark.parametrize(("first", "second"), DIFFERENT.values(), ids=DIFFERENT)
def test_calls_with_different_activations_have_none(first: Function, second: Function) -> None:
    subgraph = only(quantized(lambda m, x: first(m, m.a(x)) - second(m, m.a(x * 2))))
    assert subgraph.activation == Identity()
    assert calls(subgraph) == [("a", "a"), ("a_1", "a_1")]


def test_a_layer_that_misses_a_change_through_a_view_is_left_out_with_all_behind_it() -> None:
    def function(m: Any, x: Any) -> Any:
        first = m.a(x)
        row = first[:1]
        F.relu_(first)
        return m.b(first) + m.d(m.c(row))

    gm = quantized(function)
    assert names(find_subgraphs(gm)) == ["a", "b"]
    reason = "relu_ changes a tensor in place that is read through a view of it"
    found = refusals(gm)
    assert found["c"] == found["d"] == (f"not learned from values: {reason}",)
