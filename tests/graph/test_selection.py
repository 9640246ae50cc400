"""Rules find calls by the names and types that the caller knows."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe, RecipeError, Rule
from fxquant.graph.records import record
from fxquant.graph.selection import call_name, select_calls
from fxquant.passes import FoldBatchNorm, LiftFunctionals
from tests.helpers import Net, apply, refusals


def blocks() -> fx.GraphModule:
    layers = nn.ModuleDict({"layer1": nn.Linear(4, 4), "layer2": nn.Linear(4, 4)})
    return fxquant.trace(
        Net(
            lambda m, x: m.fc(m.body["layer2"](m.body["layer1"](x)) + x),
            body=layers,
            fc=nn.Linear(4, 2),
        )
    )


def bits(gm: fx.GraphModule, *rules: Rule) -> dict[str, int | None]:
    """Return the bits of the weights of each call, by node name."""
    calls = select_calls(gm, Recipe.minmax(rules=rules))
    return {node.name: call.weights.bits if call.weights else None for node, call in calls.items()}


def test_selects_layers_and_additions_in_execution_order() -> None:
    names = ["body_layer1", "body_layer2", "add", "fc"]
    assert list(bits(blocks())) == names


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([Rule("fc", weights=4)], (8, 8, 8, 4)),
        ([Rule("body.*", weights=4)], (4, 4, 8, 8)),
        ([Rule("*layer[2]", weights=4)], (8, 4, 8, 8)),
        ([Rule(nn.Linear, weights=4)], (4, 4, 8, 4)),
        ([Rule(nn.Linear, weights=4), Rule("fc", weights=2)], (4, 4, 8, 2)),
        ([Rule("fc", weights=2), Rule(nn.Linear, weights=4)], (4, 4, 8, 4)),
        ([Rule("fc", skip=True)], (8, 8, 8, None)),
        ([Rule("*", weights=3)], (3, 3, 3, 3)),
    ],
    ids=repr,
)
def test_later_rules_win(rules: Iterable[Rule], expected: tuple[int | None, ...]) -> None:
    assert tuple(bits(blocks(), *rules).values()) == expected


def test_records_what_the_recipe_leaves_in_float() -> None:
    gm = blocks()
    select_calls(gm, Recipe.minmax(skip=["body.*"]))
    assert [node.name for node in gm.graph.nodes if record(node).skipped] == [
        "body_layer1",
        "body_layer2",
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("fcs", skip=True), "rule 'fcs' (#1) matches no call; did you mean fc?"),
        (
            Rule("body.layer3", skip=True),
            "rule 'body.layer3' (#1) matches no call; did you mean body.layer2, body.layer1?",
        ),
        (
            Rule("body", skip=True),
            "rule 'body' (#1) matches no call; a name matches as a whole: did you mean 'body.*'?",
        ),
        (
            Rule("layer2", skip=True),
            "rule 'layer2' (#1) matches no call; did you mean body.layer2?",
        ),
        (
            Rule("transformer.*", skip=True),
            "rule 'transformer.*' (#1) matches no call; names start with: body, add, fc",
        ),
        (
            Rule(nn.Conv2d, skip=True),
            "rule nn.Conv2d (#1) matches no call; layers are of the types: Linear",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.match),
)
def test_a_rule_that_matches_nothing_names_what_is_near(rule: Rule, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        select_calls(blocks(), Recipe.minmax(rules=[Rule("fc", weights=4), rule]))
    assert str(caught.value) == message


def test_a_rule_by_its_original_name_reaches_the_copy_of_a_shared_module() -> None:
    gm = fxquant.trace(
        Net(
            lambda m, x: m.bn(m.conv(x)) + m.conv(x * 2),
            conv=nn.Conv2d(4, 4, 1),
            bn=nn.BatchNorm2d(4),
        )
    )
    apply(FoldBatchNorm(), gm)
    nodes = gm.graph.find_nodes(op="call_module")
    assert [(str(node.target), call_name(gm, node)) for node in nodes] == [
        ("conv_1", "conv"),
        ("conv", "conv"),
    ]
    assert bits(gm, Rule("conv", weights=4)) == {"conv": 4, "conv_1": 4, "add": 8}
    with pytest.raises(RecipeError, match=r"rule 'conv_1' .* did you mean conv"):
        select_calls(gm, Recipe.minmax(skip=["conv_1"]))


def test_a_rule_finds_a_lifted_function_in_its_owner() -> None:
    gm = fxquant.trace(Net(lambda m, x: F.linear(x, m.fc.weight), fc=nn.Linear(4, 4)))
    apply(LiftFunctionals(), gm)
    assert bits(gm, Rule("fc", weights=4)) == {"fc": 4}
    model = Net(lambda m, x: F.linear(x, m.fc.weight) * m.fc.bias, fc=nn.Linear(4, 4))
    gm = fxquant.trace(model)
    apply(LiftFunctionals(), gm)
    assert bits(gm, Rule("fc.*", weights=4)) == {"fc_linear": 4}


def test_leaves_a_layer_with_forward_hooks_in_float() -> None:
    model = Net(lambda m, x: m.fc(x), fc=nn.Linear(4, 4))
    model.get_submodule("fc").register_forward_pre_hook(lambda module, inputs: None)
    gm = fxquant.trace(model)
    assert bits(gm) == {"fc": None}
    assert refusals(gm) == {
        "fc": ("left in float: its Linear has forward hooks, which may use its parameters",)
    }


def test_calls_with_weights_inside_are_recorded_as_float() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = x + self.attention(x, x, x)[0]
            return self.lstm(x)[0]  # type: ignore[no-any-return]

    prepared = fxquant.prepare(Attention(), leaf_modules=[nn.MultiheadAttention])
    report = str(fxquant.report(prepared))
    assert "left in float: MultiheadAttention is called as a whole" in report
    assert "left in float: LSTM is called as a whole" in report


@fx.wrap
def weighted(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


def test_functions_that_take_weights_are_recorded_as_float() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return weighted(m.fc(x), m.weight)

    model = Net(forward, fc=nn.Linear(4, 4), weight=nn.Parameter(torch.ones(4, 4)))
    report = str(fxquant.report(fxquant.prepare(model)))
    assert "left in float: weighted takes weights as arguments" in report
