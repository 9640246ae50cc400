"""A repr is the shortest call that makes the same again."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import TARGETS, Budget, Recipe, Reconstruction, Rule, Target, TensorSpec
from tests.recipe.drawn import budgets, recipes, reconstructions, rules, specs, targets

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=SLOW)
@given(st.one_of(recipes(), specs(), rules(), reconstructions(), budgets(), targets()))
def test_a_repr_makes_the_same_again(made: Any) -> None:
    assert eval(repr(made), vars(fxquant)) == made


SHORT = [
    (Recipe(), "Recipe.minmax()"),
    (Recipe.aciq(), "Recipe.aciq()"),
    (Recipe.adaround(skip=["fc"]), "Recipe.adaround(weight_bits=4, skip=['fc'])"),
    (Recipe.adaround(activation_bits=4), "Recipe.adaround(weight_bits=4, activation_bits=4)"),
    (
        Recipe.adaround(activation_bits=4, blocks=False, end_bits=None),
        "Recipe.adaround(weight_bits=4, activation_bits=4, end_bits=None, blocks=False)",
    ),
    (Recipe.adaround(reconstruction=None), "Recipe.adaround(weight_bits=4, reconstruction=None)"),
    (Recipe.mixed(average_bits=3), "Recipe.mixed(average_bits=3)"),
    (Recipe.aciq(weight_bits=None), "Recipe.aciq(weight_bits=None)"),
    (
        Recipe.aciq(weight_bits=4, bias_correction=False, activation_per_channel=True),
        "Recipe.aciq(weight_bits=4, activation_per_channel=True, bias_correction=False)",
    ),
    (Recipe.aciq(target="tensorrt"), "Recipe.aciq(target='tensorrt')"),
    (
        Recipe.aciq(skip=[nn.Linear], rules=[Rule("a.*", weights=8), Rule("b", skip=True)]),
        "Recipe.aciq(rules=[Rule('a.*', weights=8)], skip=['b', nn.Linear])",
    ),
    (
        Recipe(weights=TensorSpec(signed=True), logits=TensorSpec()),
        "Recipe(weights=TensorSpec(signed=True), logits=TensorSpec())",
    ),
    (TensorSpec(bits=4, range="mse"), "TensorSpec(bits=4, range='mse')"),
    (Rule("fc", skip=True), "Rule('fc', skip=True)"),
    (Rule(nn.Conv2d, weights=TensorSpec()), "Rule(nn.Conv2d, weights=TensorSpec())"),
    (Reconstruction(steps=7), "Reconstruction(steps=7)"),
    (Budget(max_bytes=9, weight_bits=(2, 4)), "Budget(max_bytes=9, weight_bits=(2, 4))"),
    (TARGETS["x86"], "TARGETS['x86']"),
    (Target(name="a", ways=()), "Target(name='a', ways=())"),
]


@pytest.mark.parametrize(("made", "text"), SHORT, ids=[text for _, text in SHORT])
def test_a_repr_says_what_differs_from_the_nearest_default(made: Any, text: str) -> None:
    assert repr(made) == text
    assert eval(text, vars(fxquant)) == made


def test_a_target_that_has_the_name_of_another_is_written_in_full() -> None:
    mine = replace(TARGETS["x86"], signed=True)
    assert repr(mine).startswith("Target(name='x86', signed=True, ")
    assert eval(repr(Recipe.aciq(target=mine)), vars(fxquant)).target == mine


class Own(nn.Linear):
    """A module type of a caller's."""


def test_a_module_type_of_the_callers_goes_by_its_full_name() -> None:
    assert repr(Rule(Own, weights=4)) == f"Rule({__name__}.Own, weights=4)"
