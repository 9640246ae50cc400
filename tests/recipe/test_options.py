"""The options that an editor completes are the fields that there are, and help explains each."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from torch import nn

from fxquant import Budget, Recipe, Reconstruction, Rule, Target, TensorSpec
from fxquant.recipe.constructors import field_docs
from fxquant.recipe.options import LearningOptions, MixedOptions, RecipeOptions, SpecOptions

CONSTRUCTORS = (Recipe.minmax, Recipe.aciq, Recipe.adaround, Recipe.mixed)
PARTS = (Recipe, TensorSpec, Rule, Reconstruction, Budget, Target)
OF_ACTIVATIONS = {"signed", "momentum", "dynamic", "bit_allocation"}
OF_WEIGHTS = {"clip_weight"}


def names(kind: Any) -> set[str]:
    return {each.name for each in fields(kind)}


def test_the_options_are_the_fields() -> None:
    spec = names(TensorSpec) - {"bits"}
    weights = {f"weight_{name}" for name in spec - OF_ACTIVATIONS}
    activations = {f"activation_{name}" for name in spec - OF_WEIGHTS}
    assert set(get_type_hints(SpecOptions)) == weights | activations
    recipe = names(Recipe) - {"weights", "activations", "rules"}
    assert set(get_type_hints(RecipeOptions)) == weights | activations | recipe
    learning = weights | activations | recipe | names(Reconstruction)
    assert set(get_type_hints(LearningOptions)) == learning
    own = {"activation_bits"}  # a parameter of `mixed` itself
    assert set(get_type_hints(MixedOptions)) == learning | names(Budget) - own


@pytest.mark.parametrize("constructor", CONSTRUCTORS, ids=lambda made: str(made.__name__))
def test_help_lists_each_option_with_its_meaning_and_default(
    constructor: Callable[..., Recipe],
) -> None:
    parameters = inspect.signature(constructor).parameters
    _, _, listed = str(constructor.__doc__).partition("\nArgs:\n")
    items = [line for line in listed.splitlines() if line[4] != " "]
    assert [line.strip().partition(":")[0] for line in items] == list(parameters)
    assert " ".join(listed.split()).count("Default: ") == len(parameters)
    assert max(map(len, listed.splitlines())) <= 100
    assert "steps: Steps of Adam for each layer, or block. Default: 1000." in " ".join(
        str(Recipe.adaround.__doc__).split()
    )


@pytest.mark.parametrize("constructor", CONSTRUCTORS[:3], ids=lambda made: str(made.__name__))
def test_the_defaults_that_the_signature_shows_are_what_is_made(
    constructor: Callable[..., Recipe],
) -> None:
    for name, parameter in inspect.signature(constructor).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert constructor(**{name: parameter.default}) == constructor(), name


def test_the_signature_of_mixed_shows_the_budgets_defaults() -> None:
    shown = {
        name: each.default for name, each in inspect.signature(Recipe.mixed).parameters.items()
    }
    assert (shown["weight_bits"], shown["activation_bits"]) == ((2, 3, 4, 5, 6, 8), 8)
    assert (shown["max_bytes"], shown["average_bits"], shown["latency"]) == (None, None, {})
    assert shown["steps"] == 1000


@pytest.mark.parametrize("part", PARTS, ids=lambda part: str(part.__name__))
def test_each_field_says_what_it_means(part: type) -> None:
    docs = field_docs(part)
    assert docs.keys() == names(part)
    assert [name for name, text in docs.items() if not text] == []
    _, _, listed = str(part.__doc__).partition("\nAttributes:\n")
    assert all(f"    {name}: " in listed for name in docs)


def test_an_option_of_one_side_changes_that_side_alone() -> None:
    plain = Recipe.minmax()
    assert plain.weights is not None
    recipe = Recipe.minmax(weight_per_channel=False, weight_range="mse")
    assert recipe.weights == TensorSpec(symmetric=True, range="mse")
    assert recipe.activations == plain.activations
    recipe = Recipe.minmax(activation_per_channel=True)
    assert (recipe.weights, recipe.activations) == (plain.weights, TensorSpec(per_channel=True))


def test_one_rule_and_one_thing_to_skip_need_no_list() -> None:
    rule = Rule("layer4.*", weights=4)
    assert Recipe.aciq(rules=rule) == Recipe.aciq(rules=[rule])
    assert Recipe(rules=rule) == Recipe(rules=(rule,))  # type: ignore[arg-type]
    assert Recipe.aciq(skip="fc") == Recipe.aciq(skip=["fc"])
    assert Recipe.aciq(skip=nn.Linear) == Recipe.aciq(skip=[nn.Linear])
