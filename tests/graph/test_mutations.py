"""Calls that change their first argument are known, and who reads the change."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.graph.mutations import (
    changed_while_read,
    is_inplace,
    not_followed,
    read_instead,
    run_out_of_place,
)
from fxquant.int8.onednn import why_unavailable
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net, node

Build = Callable[[fx.Graph, fx.Node], fx.Node]


def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Build:
    return lambda graph, x: graph.call_function(target, (x, *args), kwargs)


def method(name: str, *args: Any) -> Build:
    return lambda graph, x: graph.call_method(name, (x, *args))


def module(graph: fx.Graph, x: fx.Node) -> fx.Node:
    return graph.call_module("module", (x,))


def graph_of(build: Build, called: nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    graph = fx.Graph()
    made = build(graph, graph.placeholder("x"))
    graph.output(made)
    return fx.GraphModule({"module": called}, graph), made


IN_PLACE: dict[str, tuple[Build, nn.Module]] = {
    "x.relu_()": (method("relu_"), nn.Identity()),
    "x.add_(1)": (method("add_", 1), nn.Identity()),
    "torch.relu_(x)": (call(torch.relu_), nn.Identity()),
    "F.elu_(x)": (call(F.elu_), nn.Identity()),
    "F.relu(x, True)": (call(F.relu, True), nn.Identity()),
    "F.relu(x, inplace=True)": (call(F.relu, inplace=True), nn.Identity()),
    "F.hardtanh(x, -1, 1, True)": (call(F.hardtanh, -0.1, 0.1, True), nn.Identity()),
    "ReLU(inplace)": (module, nn.ReLU(inplace=True)),
    "SiLU(inplace)": (module, nn.SiLU(inplace=True)),
    "x += 3": (call(operator.iadd, 3), nn.Identity()),
    "x -= 3": (call(operator.isub, 3), nn.Identity()),
    "x *= 3": (call(operator.imul, 3), nn.Identity()),
    "x /= 3": (call(operator.itruediv, 3), nn.Identity()),
    "x //= 3": (call(operator.ifloordiv, 3), nn.Identity()),
    "x %= 3": (call(operator.imod, 3), nn.Identity()),
    "x **= 2": (call(operator.ipow, 2), nn.Identity()),
    "x[0] = 3": (call(operator.setitem, 0, 3), nn.Identity()),
}
OUT_OF_PLACE: dict[str, tuple[Build, nn.Module]] = {
    "x.relu()": (method("relu"), nn.Identity()),
    "x.__len__()": (method("__len__"), nn.Identity()),
    "torch.add(x, 1)": (call(torch.add, 1), nn.Identity()),
    "torch.relu(x)": (call(torch.relu), nn.Identity()),
    "F.relu(x)": (call(F.relu), nn.Identity()),
    "F.relu(x, False)": (call(F.relu, False), nn.Identity()),
    "F.relu(x, inplace=False)": (call(F.relu, inplace=False), nn.Identity()),
    "F.leaky_relu(x, True)": (call(F.leaky_relu, True), nn.Identity()),  # the slope
    "F.max_pool1d(x, 1)": (call(F.max_pool1d, 1), nn.Identity()),
    "x + 3": (call(operator.add, 3), nn.Identity()),
    "x[0]": (call(operator.getitem, 0), nn.Identity()),
    "ReLU": (module, nn.ReLU()),
    "Linear": (module, nn.Linear(4, 4)),
}


@pytest.mark.parametrize(
    ("build", "called", "expected"),
    [
        pytest.param(*case, expected, id=name)
        for cases, expected in ((IN_PLACE, True), (OUT_OF_PLACE, False))
        for name, case in cases.items()
    ],
)
def test_knows_which_calls_change_their_argument(
    build: Build, called: nn.Module, expected: bool
) -> None:
    gm, made = graph_of(build, called)
    assert is_inplace(gm, made) is expected
    before = torch.randn(3, 4)
    after = before.clone()
    with torch.no_grad():
        gm(after)
    assert torch.equal(before, after) is not expected


@pytest.mark.parametrize(("build", "called"), IN_PLACE.values(), ids=IN_PLACE)
def test_a_call_on_a_copy_returns_what_the_tensor_would_be(build: Build, called: nn.Module) -> None:
    gm, made = graph_of(build, called)
    before, changed = torch.randn(3, 4), torch.empty(3, 4)
    gm(changed.copy_(before))
    function: Any = made.target
    if made.op == "call_method":
        function = getattr(Tensor, str(made.target))
    elif made.op == "call_module":
        function = called
    given = before.clone()
    result = run_out_of_place(made, function, (given, *made.args[1:]), made.kwargs)
    assert torch.equal(result, changed)
    assert torch.equal(given, before)


def test_a_call_on_a_copy_knows_its_argument_by_name() -> None:
    _, made = graph_of(call(F.relu, inplace=True), nn.Identity())
    x = -torch.ones(3)
    assert torch.equal(run_out_of_place(made, F.relu, (), {"input": x, "inplace": True}), -x - 1)
    assert torch.equal(x, -torch.ones(3))


def instead(function: Callable[[Any, Any], Any]) -> dict[str, dict[str, str]]:
    """Return who reads what instead of what, by node names."""
    gm = fx.symbolic_trace(Net(function, relu=nn.ReLU(inplace=True)))
    return {
        reader.name: {old.name: new.name for old, new in replaced.items()}
        for reader, replaced in read_instead(gm).items()
    }


def test_only_later_readers_see_a_change() -> None:
    def function(m: Any, x: Any) -> Any:
        before = x * 2
        m.relu(x)
        return before - x

    assert instead(function) == {"sub": {"x": "relu"}}


def test_readers_of_the_result_need_no_detour() -> None:
    assert instead(lambda m, x: m.relu(x * 2).sigmoid().add_(1)) == {}


def test_a_second_change_of_the_same_tensor_builds_on_the_first() -> None:
    def function(m: Any, x: Any) -> Any:
        y = x.relu_()
        x.add_(1)
        return x.sub(y)

    assert instead(function) == {"add_": {"x": "relu_"}, "sub": {"x": "add_", "relu_": "add_"}}


def test_a_chain_of_results_changes_every_link() -> None:
    def function(m: Any, x: Any) -> Any:
        a = x.relu_()
        b = a.add_(1)
        c = b.mul_(2)
        return x + a + b + c

    assert instead(function) == {
        "add": {"x": "mul_", "relu_": "mul_"},
        "add_1": {"add_": "mul_"},
    }


def test_a_change_of_one_tensor_leaves_the_others() -> None:
    def function(m: Any, x: Any) -> Any:
        a, b = x * 2, x * 3
        a.relu_()
        return a + b + x

    assert instead(function) == {"add": {"mul": "relu_"}}


def test_a_written_item_is_read_behind_the_call_that_wrote_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(operator.setitem, (x, 0, 5.0))
    graph.output(graph.call_method("mul", (x, 2)))
    gm = fx.GraphModule({}, graph)
    assert read_instead(gm) == {node(gm, "mul"): {node(gm, "x"): node(gm, "setitem")}}


NOT_FOLLOWED: dict[str, tuple[Callable[[Any, Any], Any], dict[str, str]]] = {
    "a view of before": (
        lambda m, x: (v := x[0], F.relu_(x), v.sin() + x)[-1],
        {"sin": "relu_", "add": "relu_", "output": "relu_"},
    ),
    "what a view is of": (
        lambda m, x: (F.relu_(x[0]), x.sin(), x.exp() + x.shape[0])[-1],
        {"sin": "relu_", "exp": "relu_", "add": "relu_", "output": "relu_"},
    ),
    "another view, and a change of that": (
        lambda m, x: (y := x.exp(), v := y.t(), F.relu_(y[0]), v.mul_(2), v * 1)[-1],
        {"mul_": "relu_", "mul": "relu_", "output": "relu_"},
    ),
    "the changed tensor": (lambda m, x: (F.relu_(x), x.add_(1), x[0] * x.sin())[-1], {}),
    "the changed view": (lambda m, x: (v := x[0], F.relu_(v), v * 2)[-1], {}),
    "a view of before, read before": (lambda m, x: (y := x[0] * 2, F.relu_(x), x * y)[-1], {}),
    "a size": (lambda m, x: (F.relu_(x[0]), torch.ones(2) * x.shape[0])[-1], {}),
}


@pytest.mark.parametrize(("function", "expected"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_knows_which_values_miss_a_change(
    function: Callable[[Any, Any], Any], expected: dict[str, str]
) -> None:
    found = not_followed(fx.symbolic_trace(Net(function)))
    assert {each.name: by.name for each, by in found.items()} == expected


@fx.wrap
def add_to(x: Tensor, y: Tensor) -> None:
    """A function that fx does not look into."""
    x += y


@fx.wrap
def added(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return y * 2


def test_a_function_of_which_nobody_reads_the_result_is_called_for_what_it_changes() -> None:
    gm = fx.symbolic_trace(Net(lambda m, x: (y := x.exp(), add_to(y, x), y.sin())[-1]))
    called = node(gm, "add_to")
    assert is_inplace(gm, called)
    assert read_instead(gm) == {node(gm, "sin"): {node(gm, "exp"): called}}
    x, given = torch.tensor([2.0]), torch.tensor([1.0])
    assert run_out_of_place(called, add_to, (given, x), {}).item() == 3
    assert given.item() == 1


def test_a_function_that_nobody_looked_into_may_change_each_of_its_arguments() -> None:
    gm = fx.symbolic_trace(
        Net(lambda m, x: (y := x.exp(), z := x.cos(), w := added(y, z), y.sin() + z.tan() + w)[-1])
    )
    called = node(gm, "added")
    assert not is_inplace(gm, called)
    assert changed_while_read(gm) == {node(gm, "exp"): called, node(gm, "cos"): called}


def test_a_size_is_changed_by_nobody() -> None:
    gm = fx.symbolic_trace(
        Net(lambda m, x: (n := x.shape[1:], w := added(n[0], x.dim()), w.view(n) + n[0])[-1])
    )
    assert changed_while_read(gm) == {}


@pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))
def test_integers_are_not_read_past_a_function_that_changes_what_they_stand_for() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: (y := m.first(x), add_to(y, x * 1), m.third(m.second(y.flatten(1))))[-1],
        first=nn.Linear(8, 8), second=nn.Linear(8, 8), third=nn.Linear(8, 8),
    )  # fmt: skip
    x = torch.randn(64, 8)
    quantized = fxquant.quantize(model, [x])
    lowered = fxquant.lower(quantized)
    assert sqnr(quantized(x), lowered(x)) > 50


CHANGED: dict[str, tuple[Callable[[Any, Any], Any], dict[str, str]]] = {
    "itself": (lambda m, x: (y := x.exp(), F.relu_(y), y.sin())[-1], {"exp": "relu_"}),
    "its view": (
        lambda m, x: (y := x.exp(), F.relu_(y.view(-1)), y.sin())[-1],
        {"exp": "relu_", "view": "relu_"},
    ),
    "its row, and a part is read": (
        lambda m, x: (y := x.exp(), v := y.chunk(2)[1], F.relu_(y[0]), v.sin())[-1],
        {"exp": "relu_", "chunk": "relu_", "getitem": "relu_", "getitem_1": "relu_"},
    ),
    "twice": (
        lambda m, x: (y := x.exp(), F.relu_(y), y.add_(1), y.sin())[-1],
        {"exp": "add_", "relu_": "add_"},
    ),
    "its transpose": (
        lambda m, x: (y := x.exp(), y.t().add_(1), y.sin())[-1],
        {"exp": "add_", "t": "add_"},
    ),
    "its transpose, as an attribute": (
        lambda m, x: (y := x.exp(), y.mT.add_(1), y.sin())[-1],
        {"exp": "add_", "getattr_1": "add_"},
    ),
    "itself, detached": (
        lambda m, x: (y := x.exp(), y.detach().add_(1), y.sin())[-1],
        {"exp": "add_", "detach": "add_"},
    ),
    "in a row": (
        lambda m, x: (y := x.exp(), y.mul_(2).sub_(1), y.sin())[-1],
        {"exp": "sub_", "mul_": "sub_"},
    ),
    "in a row, through a view": (
        lambda m, x: (y := x.exp(), y.mul_(2).view(-1).sub_(1), y.sin())[-1],
        {"exp": "sub_", "mul_": "sub_", "view": "sub_"},
    ),
    "and a result of before is read": (
        lambda m, x: (y := x.exp(), z := y.mul_(2), y.sub_(1), z.sin())[-1],
        {"exp": "sub_", "mul_": "sub_"},
    ),
    "it is the output": (lambda m, x: (y := x.exp(), F.relu_(y), y)[-1], {"exp": "relu_"}),
    "read before": (lambda m, x: (y := x.exp(), y.sin(), F.relu_(y))[-1], {}),
    "the result is read": (lambda m, x: F.relu_(x.exp()).sin(), {}),
    "a pool of it": (
        lambda m, x: (y := x.exp(), F.relu_(F.max_pool1d(y, 1)), y.sin())[-1],
        {},
    ),
    "a copy of it": (lambda m, x: (y := x.exp(), F.relu_(y * 1), y.sin())[-1], {}),
    "out of place": (lambda m, x: (y := x.exp(), F.relu(y), y.sin())[-1], {}),
}


@pytest.mark.parametrize(("function", "expected"), CHANGED.values(), ids=CHANGED)
def test_knows_what_is_changed_in_place_and_read_later(
    function: Callable[[Any, Any], Any], expected: dict[str, str]
) -> None:
    found = changed_while_read(fxquant.trace(Net(function)))
    assert {each.name: by.name for each, by in found.items()} == expected
