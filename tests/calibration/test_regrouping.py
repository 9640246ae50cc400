"""Samples come in batches of another size only where the model takes them."""

from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.calibration.observed import find_observers
from fxquant.calibration.regrouping import regrouped
from fxquant.calling.batching import Batches
from tests.helpers import Net, whole

FIXED = {
    "reshape": lambda m, x: m.fc(x.reshape(2, 4)),
    "view": lambda m, x: m.fc(x).view(2, 3),
}
RECIPES = [Recipe.adaround(steps=2, samples=5), Recipe.mixed(steps=2, average_bits=4)]


def calls(*sizes: int) -> Batches:
    return Batches([(torch.randn(size, 4),) for size in sizes])


def prepared(function: Any) -> nn.Module:
    return fxquant.prepare(Net(function, fc=nn.Linear(4, 3)))


def test_samples_are_joined_and_cut() -> None:
    model = prepared(lambda m, x: m.fc(x))
    assert regrouped(model, calls(2, 2, 5), 4).sizes == [4, 4, 1]
    assert regrouped(model, calls(), 4).sizes == []


@pytest.mark.parametrize("function", FIXED.values(), ids=FIXED)
def test_a_model_that_is_written_for_one_size_keeps_it(function: Any) -> None:
    assert regrouped(prepared(function), calls(2, 2, 2), 4).sizes == [2, 2, 2]
    assert regrouped(prepared(function), calls(2, 2, 1), 2).sizes == [2, 2]


def test_a_model_that_drops_the_axis_of_its_batch_keeps_it() -> None:
    assert regrouped(prepared(lambda m, x: m.fc(x.squeeze(0))), calls(1, 1), 2).sizes == [1, 1]


def test_nothing_is_observed() -> None:
    model = whole(prepared(lambda m, x: m.fc(x)))
    regrouped(model, calls(2, 2), 4)
    assert [observer.num_batches for *_, observer in find_observers(model)] == [0]


def test_what_forward_counts_is_not_counted() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> Any:
            self.get_buffer("calls").add_(1)
            return self.fc(x)

    model = fxquant.prepare(Counting())
    regrouped(model, calls(2, 2), 4)
    assert model.get_buffer("calls") == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_roundings_are_learned_for_a_model_that_is_written_for_one_size(recipe: Recipe) -> None:
    model = Net(lambda m, x: m.fc(x.reshape(2, 4)), fc=nn.Linear(4, 3))
    quantized = fxquant.quantize(model, [torch.randn(2, 4) for _ in range(4)], recipe)
    assert fxquant.report(quantized).num_quantized == 1
