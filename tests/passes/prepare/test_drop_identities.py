"""DropIdentities removes what does nothing in eval mode, and nothing else."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import fxquant
from fxquant.passes import DropIdentities
from tests.helpers import Net, apply, graph_text, outputs

Function = Callable[[Any, Any], Any]

MODULES = [
    nn.Identity(),
    nn.Dropout(0.5),
    nn.Dropout1d(0.5),
    nn.Dropout2d(0.5),
    nn.Dropout3d(0.5),
    nn.AlphaDropout(0.5),
    nn.FeatureAlphaDropout(0.5),
    StochasticDepth(0.5, "row"),
]
FUNCTIONS: dict[str, Function] = {
    "F.dropout": lambda m, x: F.dropout(x, 0.5, m.training),
    "F.dropout, keywords": lambda m, x: F.dropout(input=x, p=0.5, training=False),
    "F.dropout1d": lambda m, x: F.dropout1d(x, 0.5, False),
    "F.dropout2d": lambda m, x: F.dropout2d(x, 0.5, False),
    "F.dropout3d": lambda m, x: F.dropout3d(x, 0.5, False),
    "F.alpha_dropout": lambda m, x: F.alpha_dropout(x, 0.5, False),
    "F.alpha_dropout, default": lambda m, x: F.alpha_dropout(x, 0.5),
    "F.feature_alpha_dropout": lambda m, x: F.feature_alpha_dropout(x, 0.5),
    "torch.dropout": lambda m, x: torch.dropout(x, 0.5, False),
}
KEPT: dict[str, Function] = {
    "F.dropout, training": lambda m, x: F.dropout(x, 0.5, True),
    "F.dropout, default": lambda m, x: F.dropout(x, 0.5),
    "max_pool2d": lambda m, x: F.max_pool2d(x, 1),
    "avg_pool2d": lambda m, x: F.avg_pool2d(x, 1),
    "contiguous": lambda m, x: x.contiguous(),
}


def test_lets_the_users_of_an_identity_take_its_input() -> None:
    model = Net(
        lambda m, x: m.fc(m.drop(x)) + m.skip(x),
        fc=nn.Linear(4, 4),
        drop=nn.Dropout(),
        skip=nn.Identity(),
    )
    gm = fxquant.trace(model)
    x = torch.randn(2, 4)
    assert graph_text(gm) == cleandoc("""
        x = input()
        drop = self.drop(x) # Dropout
        fc = self.fc(drop) # Linear
        skip = self.skip(x) # Identity
        add = operator.add(fc, skip)
        return add
    """)
    assert apply(DropIdentities(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        fc = self.fc(x) # Linear
        add = operator.add(fc, x)
        return add
    """)
    assert [name for name, _ in gm.named_children()] == ["fc"]
    assert torch.equal(outputs(gm, x), outputs(model, x))
    assert not apply(DropIdentities(), gm)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_drops_a_module_that_hands_on_its_input(module: nn.Module) -> None:
    gm = fxquant.trace(nn.Sequential(module, nn.ReLU(), module), leaf_modules=(type(module),))
    assert apply(DropIdentities(), gm)
    assert [each.op for each in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    assert not apply(DropIdentities(), gm)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_drops_a_function_that_hands_on_its_input(function: Function) -> None:
    gm = fxquant.trace(Net(function))
    assert apply(DropIdentities(), gm)
    assert graph_text(gm) == "x = input()\nreturn x"


def test_drops_the_function_that_stochastic_depth_calls() -> None:
    gm = fxquant.trace(nn.Sequential(StochasticDepth(0.5, "row")))
    assert "stochastic_depth" in graph_text(gm)
    assert apply(DropIdentities(), gm)
    assert graph_text(gm) == "input_1 = input()\nreturn input_1"


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_keeps_a_function_that_does_something(function: Function) -> None:
    gm = fxquant.trace(Net(function))
    before = graph_text(gm)
    assert not apply(DropIdentities(), gm)
    assert graph_text(gm) == before


def test_drops_an_empty_sequential_that_is_a_leaf() -> None:
    gm = fxquant.trace(nn.Sequential(nn.ReLU(), nn.Sequential()), leaf_modules=(nn.Sequential,))
    assert apply(DropIdentities(), gm)
    assert [str(each.target) for each in gm.graph.nodes] == ["input", "0", "output"]


def test_keeps_dropout_in_training_mode() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Dropout(0.5)))
    gm.get_submodule("0").train()
    assert not apply(DropIdentities(), gm)


def test_keeps_a_subclass_with_a_forward_of_its_own() -> None:
    class Doubling(nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input * 2

    gm = fxquant.trace(nn.Sequential(Doubling()), leaf_modules=(Doubling,))
    assert not apply(DropIdentities(), gm)


def test_keeps_an_identity_whose_forward_hook_changes_its_output() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity())
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    gm = fxquant.trace(model)
    x = torch.randn(2, 4)
    assert not apply(DropIdentities(), gm)
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_keeps_the_module_for_calls_that_are_not_dropped() -> None:
    model = Net(lambda m, x: m.drop(x).relu() + m.drop(x), drop=nn.Dropout())
    gm = fxquant.trace(model)
    gm.get_submodule("drop").train()
    assert not apply(DropIdentities(), gm)
    assert [name for name, _ in gm.named_children()] == ["drop"]
