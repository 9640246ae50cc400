"""Targets are pure data, and recipes ask in their integers."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from fxquant import TARGETS, Recipe, RecipeError, Rule, Target, TensorSpec
from fxquant.recipe.target import layer_name

CONV, UP = nn.Conv2d(3, 8, 3), nn.ConvTranspose1d(3, 8, 3)


@pytest.mark.parametrize(
    ("target", "symmetric", "signed"),
    [("x86", False, False), ("tensorrt", True, True), ("executorch", False, True)],
)
def test_recipes_ask_in_the_targets_integers(target: str, symmetric: bool, signed: bool) -> None:
    recipe = Recipe.aciq(target=target, rules=[Rule("b", activations=TensorSpec())])
    for name in ("a", "b"):
        asked = recipe.for_call(name, CONV).activations
        assert asked is not None
        assert (asked.symmetric, asked.signed) == (symmetric, signed)


def test_tensorrt_has_one_scale_for_the_weights_of_transposed_convolutions() -> None:
    recipe = Recipe.minmax(target="tensorrt")
    specs = [recipe.for_call("a", layer).weights for layer in (CONV, UP)]
    assert [each is not None and each.per_channel for each in specs] == [True, False]


def test_a_target_may_be_written_by_hand() -> None:
    mine = replace(TARGETS["x86"], name="mine", signed=True)
    recipe = Recipe.minmax(target=mine)
    assert recipe.target is mine
    assert eval(repr(mine)) == mine
    assert "target=Target(name='mine'" in repr(recipe)
    assert Recipe.minmax(target="layers").target is TARGETS["layers"]
    assert "target='layers'" in repr(Recipe.minmax(target="layers"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe.minmax(target="tflite"), "target='tflite': choose one of x86, openvino, o"),
        (lambda: Recipe.minmax(target=3), "target=3: choose one of"),  # type: ignore[arg-type]
        (lambda: Target(name=""), "give it a name"),
        (lambda: Target(name="a", ways=("run",)), "ways=.'run'.: choose of lower, to_qdq"),  # type: ignore[arg-type]
        (lambda: Target(name="a", end_bits=1), "bits=1"),
        (
            lambda: Recipe.aciq(activation_bits=4, target="executorch"),
            "target 'executorch': activations of 4 bits: it has kernels for 8",
        ),
        (
            lambda: Recipe.aciq(target="executorch", rules=[Rule("a", activations=4)]),
            "activations of 4 bits",
        ),
    ],
)
def test_what_there_is_not_is_an_error(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_layers_go_by_three_names() -> None:
    assert [layer_name(each) for each in (CONV, UP, nn.Linear(2, 2), nn.ReLU(), None)] == [
        "conv", "conv_transpose", "linear", None, None,
    ]  # fmt: skip
