"""A function is called as a pass: what it returns is taken over, what it changed is found out."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.infra.pass_base import PassResult

import fxquant
from fxquant.errors import PassError
from fxquant.graph.records import record
from fxquant.passes import FoldBatchNorm, MarkFusedRelu
from fxquant.passes.functions import apply_function, forget_fusions, name_of, why_no_pass
from tests.helpers import graph_text, outputs, randomize_batchnorms

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.bn(self.conv(x)))


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    model = Net()
    randomize_batchnorms(model)
    return fxquant.trace(model)


def use_sigmoid(gm: fx.GraphModule) -> Any:
    for node in gm.graph.find_nodes(op="call_function", target=torch.relu):
        node.target = torch.sigmoid


class Sigmoids(fx.Transformer):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        target = torch.sigmoid if target is torch.relu else target
        return super().call_function(target, args, kwargs)


class Caller:
    def __call__(self, gm: fx.GraphModule) -> fx.GraphModule:
        use_sigmoid(gm)
        return gm


def traced_anew(model: nn.Module) -> nn.Module:
    graph = fx.Tracer().trace(model)
    made = fx.GraphModule(model, graph)
    use_sigmoid(made)
    made.recompile()
    return made


def says_no(gm: fx.GraphModule) -> bool:
    use_sigmoid(gm)
    return False


def with_result(gm: fx.GraphModule) -> PassResult:
    return PassResult(fx.Transformer(Sigmoids(gm).transform()).transform(), True)


WAYS: dict[str, Callable[[fx.GraphModule], Any]] = {
    "in place": use_sigmoid,
    "a wrong answer": says_no,
    "an object": Caller(),
    "partial": functools.partial(use_sigmoid),
    "a transformer": lambda gm: Sigmoids(gm).transform(),
    "traced anew": traced_anew,
    "a result": with_result,
    "a list": lambda gm: fx.replace_pattern(gm, lambda x: torch.relu(x), lambda x: x.sigmoid()),
}


@pytest.mark.parametrize("function", WAYS.values(), ids=WAYS)
def test_every_way_of_writing_a_function_changes_the_same_module(
    function: Callable[[fx.GraphModule], Any],
) -> None:
    gm = traced()
    expected = torch.sigmoid(gm.get_submodule("bn")(gm.get_submodule("conv")(X)))
    assert apply_function(function, gm)
    gm.graph.lint()
    gm.recompile()
    torch.testing.assert_close(outputs(gm, X), expected)
    assert gm.graph.owning_module is gm


def test_modules_of_what_is_returned_come_along_and_those_unused_go() -> None:
    gm = traced()
    expected = outputs(gm, X)
    assert apply_function(fuse, gm)
    assert [name for name, _ in gm.named_children()] == ["conv"]
    torch.testing.assert_close(outputs(gm, X), expected)


def test_what_is_returned_stays_a_module_of_its_own() -> None:
    gm, kept = traced(), []

    def transform(gm: fx.GraphModule) -> fx.GraphModule:
        kept.append(Sigmoids(gm).transform())
        return kept[0]

    apply_function(transform, gm)
    apply_function(lambda gm: gm.graph.erase_node(list(gm.graph.nodes)[-1]), gm)
    assert kept[0](X).shape == (2, 4, 4, 4)


def test_what_is_known_of_a_node_goes_over_to_the_same_node() -> None:
    gm = traced()
    FoldBatchNorm()(gm)
    assert not apply_function(lambda gm: fx.Transformer(gm).transform(), gm)
    assert "folded: bn" in graph_text(gm)


@pytest.mark.parametrize(
    "function",
    [
        lambda gm: None,
        lambda gm: False,
        lambda gm: gm,
        lambda gm: [],
        lambda gm: gm.recompile() and 0,
    ],
)
def test_a_function_that_changes_nothing_is_found_out(
    function: Callable[[fx.GraphModule], Any],
) -> None:
    assert not apply_function(function, traced())


def test_a_change_of_tensors_and_modules_is_one_too() -> None:
    def scale(gm: fx.GraphModule) -> None:
        with torch.no_grad():
            gm.get_parameter("conv.weight").mul_(2)

    assert apply_function(scale, traced())
    assert apply_function(lambda gm: gm.add_module("conv", nn.Conv2d(3, 4, 3)), traced())
    assert apply_function(lambda gm: 3, traced())


def test_a_relu_that_is_none_any_more_is_not_fused() -> None:
    gm = traced()
    FoldBatchNorm()(gm)
    MarkFusedRelu()(gm)
    forget_fusions(gm)
    assert "fused: relu" in graph_text(gm)
    apply_function(use_sigmoid, gm)
    assert "fused" not in graph_text(gm)
    assert all(record(node).clamp is None for node in gm.graph.nodes)


def test_a_relu_behind_something_else_is_not_fused() -> None:
    def negate(gm: fx.GraphModule) -> None:
        (relu,) = gm.graph.find_nodes(op="call_function", target=torch.relu)
        with gm.graph.inserting_before(relu):
            relu.args = (gm.graph.call_function(torch.neg, relu.args),)

    gm = traced()
    FoldBatchNorm()(gm)
    MarkFusedRelu()(gm)
    apply_function(negate, gm)
    assert "fused" not in graph_text(gm)


REFUSED: dict[str, tuple[Callable[[fx.GraphModule], Any], str]] = {
    "graph": (lambda gm: gm.graph, "it returned a Graph: return fx.GraphModule(gm, graph)"),
    "transformer": (Sigmoids, "it returned a Sigmoids: return its .transform()"),
    "pass": (
        lambda gm: FoldBatchNorm(),
        "it returned the pass FoldBatchNorm: call it, with the GraphModule",
    ),
    "module": (
        lambda gm: nn.ReLU(),
        "it returned a ReLU: return None, whether it changed the graph, the GraphModule, or a "
        "PassResult",
    ),
}


@pytest.mark.parametrize(("function", "expected"), REFUSED.values(), ids=REFUSED)
def test_anything_else_that_is_returned_is_an_error(
    function: Callable[[fx.GraphModule], Any], expected: str
) -> None:
    with pytest.raises(PassError) as caught:
        apply_function(function, traced())
    assert str(caught.value) == expected


NO_PASSES: dict[str, tuple[Any, str]] = {
    "class": (FoldBatchNorm, "FoldBatchNorm is a class: give an instance, FoldBatchNorm(…)"),
    "transformer": (Sigmoids, "Sigmoids is a class: give lambda gm: Sigmoids(gm).transform()"),
    "module": (nn.ReLU(), "a ReLU is a module, no pass: call the pass, or the Pipeline"),
    "list": ([use_sigmoid], "a list is no pass: give its items one by one, Pipeline(*…)"),
    "number": (
        3,
        "3 is no pass: give an instance of fxquant.Pass, or a function of a GraphModule",
    ),
}


@pytest.mark.parametrize(("given", "expected"), NO_PASSES.values(), ids=NO_PASSES)
def test_what_cannot_be_a_pass_is_named_with_what_to_give(given: Any, expected: str) -> None:
    assert why_no_pass(given) == expected


def test_a_transformer_of_one_graph_is_no_pass() -> None:
    assert str(why_no_pass(Sigmoids(traced()))).startswith("a Sigmoids has one graph of its own")
    assert why_no_pass(use_sigmoid) is None


def test_names_are_those_of_functions_and_of_the_types_of_objects() -> None:
    assert name_of(functools.partial(functools.partial(use_sigmoid))) == "use_sigmoid"
    assert name_of(Caller()) == "Caller"
    assert name_of(lambda gm: gm).startswith("lambda (test_functions.py:")
    assert name_of(Sigmoids(traced()).transform) == "transform"
