"""The options that an editor completes are the fields that there are."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from fxquant import Budget, Recipe, RecipeError, Reconstruction, TensorSpec
from fxquant.recipe.options import (
    ActivationOptions,
    LearningOptions,
    MixedOptions,
    RecipeOptions,
)


def names(kind: type) -> set[str]:
    return {each.name for each in fields(kind)}


def test_the_options_are_the_fields() -> None:
    activations = names(TensorSpec) - {"bits"}
    recipe = names(Recipe) - {"weights", "activations", "rules"}
    assert set(get_type_hints(ActivationOptions)) == activations
    assert set(get_type_hints(RecipeOptions)) == activations | recipe
    learning = activations | recipe | names(Reconstruction)
    assert set(get_type_hints(LearningOptions)) == learning
    own = {"activation_bits"}  # a parameter of `mixed` itself
    assert set(get_type_hints(MixedOptions)) == learning | names(Budget) - own


@pytest.mark.parametrize("make", [Recipe.minmax, Recipe.aciq, Recipe.adaround])
def test_what_is_no_field_is_refused_by_name(make: type[Recipe]) -> None:
    with pytest.raises(RecipeError, match="unknown options: stps"):
        make(stps=3)  # type: ignore[call-arg]
