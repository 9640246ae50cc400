"""Chains go as far as each result has one reader; one node may take their place."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.graph.chains import Chain, find_chains
from fxquant.graph.operations import is_add, is_layer, relu_bounds
from fxquant.graph.records import annotate, record, value_of
from fxquant.numerics.affine import AffineNumbers, Grid
from tests.helpers import Net, graph_text, node, outputs

HALVES = AffineNumbers(0.5, 3, Grid(0, 255))
RELUS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, nn.Module]]] = {
    "module": (lambda m, x: m.relu(m.fc(x)), {"relu": nn.ReLU()}),
    "function": (lambda m, x: F.relu(m.fc(x)), {}),
    "method": (lambda m, x: m.fc(x).relu(), {}),
}


def traced(function: Callable[[Any, Any], Any], **parts: Any) -> fx.GraphModule:
    return fxquant.trace(Net(function, **parts))


def with_layer(function: Callable[[Any, Any], Any], **parts: Any) -> fx.GraphModule:
    return traced(function, fc=nn.Linear(4, 4), **parts)


def behind(gm: fx.GraphModule, name: str) -> Chain:
    return Chain.behind(gm, node(gm, name))


def names(chain: Chain) -> list[str]:
    return [each.name for each in chain.nodes]


@pytest.mark.parametrize(("function", "parts"), RELUS.values(), ids=RELUS)
def test_takes_the_relu_behind_a_layer(
    function: Callable[[Any, Any], Any], parts: dict[str, nn.Module]
) -> None:
    gm = with_layer(function, **parts)
    chain = behind(gm, "fc").take(relu_bounds)
    assert names(chain) == ["fc", "relu"]
    assert (chain.first, chain.last) == (node(gm, "fc"), node(gm, "relu"))
    assert chain.next is node(gm, "output")


def test_takes_nothing_where_the_result_branches() -> None:
    gm = with_layer(lambda m, x: (y := m.fc(x)).relu() + y)
    chain = behind(gm, "fc")
    assert chain.next is None
    assert chain.take(relu_bounds) is chain


def test_takes_nothing_where_the_next_node_is_another() -> None:
    chain = behind(with_layer(lambda m, x: m.fc(x).exp().relu()), "fc")
    assert chain.take(relu_bounds) is chain
    assert names(chain) == ["fc"]


def test_goes_past_what_is_not_there() -> None:
    gm = with_layer(lambda m, x: (m.fc(x) + x).relu())
    chain = behind(gm, "fc").take(relu_bounds).take(is_add).take(is_add).take(relu_bounds)
    assert names(chain) == ["fc", "add", "relu"]


def test_a_chain_stays_what_it_was_when_another_goes_on() -> None:
    chain = behind(with_layer(lambda m, x: m.fc(x).relu()), "fc")
    chain.take(relu_bounds)
    assert names(chain) == ["fc"]


def test_takes_all_up_to_the_first_that_is_another() -> None:
    gm = with_layer(lambda m, x: m.fc(x).relu().clamp(0, 6).exp().relu())
    assert names(behind(gm, "fc").take_all(relu_bounds)) == ["fc", "relu", "clamp"]


def test_the_next_node_alone_uses_the_result() -> None:
    gm = traced(lambda m, x: (y := x.exp()) + y * y.log())
    assert behind(gm, "exp").next is None  # three users
    assert behind(gm, "log").next is node(gm, "mul")
    assert behind(gm, "output").next is None
    gm = traced(lambda m, x: (y := x.exp()) + y)
    assert behind(gm, "exp").next is node(gm, "add")  # twice, but alone


def test_asks_whom_it_is_told_for_the_users() -> None:
    gm = traced(lambda m, x: (y := x.exp()).relu() + y)
    exp, relu = node(gm, "exp"), node(gm, "relu")
    assert behind(gm, "exp").next is None
    chain = Chain.behind(gm, exp, {exp: [relu], relu: []}).take(relu_bounds)
    assert names(chain) == ["exp", "relu"]
    assert chain.why_not_fusable() is None
    assert chain.next is None


def test_finds_each_pair_whether_or_not_it_can_be_fused() -> None:
    gm = with_layer(lambda m, x: m.fc(x).relu() + (y := m.fc(x)).relu() + y + y.exp() + x.relu())
    found = list(find_chains(gm, is_layer, relu_bounds))
    assert [names(chain) for chain in found] == [["fc", "relu"], ["fc_1", "relu_1"]]
    assert [chain.why_not_fusable() for chain in found] == [None, "fc_1 also feeds add_1, exp"]


def test_replace_puts_one_node_in_the_place_of_all() -> None:
    gm = with_layer(lambda m, x: (y := m.fc(x).relu().exp()) + y)
    chain = behind(gm, "fc").take(relu_bounds).take(lambda _, each: each.target == "exp")
    annotate(chain.last, integers=HALVES)
    with gm.graph.inserting_before(chain.last):
        by = gm.graph.call_function(torch.sin, (node(gm, "x"),))
    chain.replace(by)
    gm.graph.lint()
    gm.recompile()
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = torch.sin(x)
        add = operator.add(fc, fc)
        return add
    """)
    assert (value_of(by), record(by).integers) == ("exp", HALVES)
    x = torch.randn(3)
    assert torch.equal(outputs(gm, x), 2 * x.sin())


def test_replace_leaves_the_new_nodes_own_use_of_the_chain() -> None:
    gm = traced(lambda m, x: x.exp().log())
    exp, log = node(gm, "exp"), node(gm, "log")
    with gm.graph.inserting_after(log):
        by = gm.graph.call_function(torch.sin, (exp,))
    Chain.behind(gm, log).replace(by, "wave")
    assert graph_text(gm) == cleandoc("""
        x = input()
        exp = x.exp()
        wave = torch.sin(exp)
        return wave
    """)


def test_what_asks_for_a_shape_is_no_reader_and_asks_what_takes_the_place() -> None:
    gm = with_layer(lambda m, x: (y := m.fc(x)).relu().reshape(y.shape[0], -1))
    chain = behind(gm, "fc").take(relu_bounds)
    assert names(chain) == ["fc", "relu"]
    assert chain.why_not_fusable() is None
    with gm.graph.inserting_before(chain.first):
        by = gm.graph.call_function(torch.sin, (node(gm, "x"),))
    chain.replace(by)
    gm.graph.lint()
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = torch.sin(x)
        getattr_1 = builtins.getattr(fc, 'shape')
        getitem = operator.getitem(getattr_1, 0)
        reshape = fc.reshape(getitem, -1)
        return reshape
    """)
