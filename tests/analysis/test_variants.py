"""Variants of a recipe change what they say, and nothing else."""

from fxquant import Recipe, Rule, TensorSpec
from fxquant.analysis.variants import (
    activations_only,
    quantizes_activations,
    quantizes_weights,
    weights_only,
    with_rules,
    with_weight_bits,
    without_learning,
)
from fxquant.mixed_precision.allocation import rules_of


def test_a_side_in_float_is_so_for_rules_too_and_what_is_skipped_stays() -> None:
    rules = [Rule("fc", weights=8, activations=8), Rule("stem", skip=True)]
    recipe = Recipe.aciq(weight_bits=4, activation_bits=4, rules=rules)
    weights, activations = weights_only(recipe), activations_only(recipe)
    assert weights.for_call("fc", None).activations is None
    assert weights.for_call("fc", None).weights == recipe.for_call("fc", None).weights
    assert activations.for_call("fc", None).weights is None
    assert activations.for_call("fc", None).activations == recipe.for_call("fc", None).activations
    assert weights.rules[1].skip
    assert activations.rules[1].skip
    assert not activations.bias_correction


def test_says_which_sides_are_rounded_by_specs_or_by_rules() -> None:
    only = Recipe.minmax(weight_bits=None)
    assert (quantizes_weights(only), quantizes_activations(only)) == (False, True)
    by_rule = Recipe.minmax(weight_bits=None, rules=[Rule("fc", weights=8)])
    assert quantizes_weights(by_rule)
    assert not quantizes_activations(Recipe.minmax(activation_bits=None))
    assert quantizes_activations(Recipe.minmax(activation_bits=None, products=TensorSpec()))


def test_other_weight_bits_are_those_of_rules_and_ends_too() -> None:
    rules = [Rule("a", weights=TensorSpec(bits=3, range="mse")), Rule("b", weights=None)]
    recipe = with_weight_bits(Recipe.minmax(weight_bits=4, end_bits=8, rules=rules), 5)
    assert recipe.for_call("x", None).weights.bits == 5  # type: ignore[union-attr]
    changed = recipe.for_call("a", None).weights
    assert changed is not None
    assert (changed.bits, changed.range) == (5, "mse")
    assert recipe.for_call("b", None).weights is None
    assert recipe.end_bits == 5


def test_without_learning_is_rounding_to_nearest_in_the_same_ranges() -> None:
    learned = Recipe.mixed(average_bits=3)
    plain = without_learning(learned)
    assert (plain.reconstruction, plain.budget) == (None, None)
    assert (plain.weights, plain.activations) == (learned.weights, learned.activations)


def test_rules_go_behind_and_a_name_with_brackets_matches_itself() -> None:
    (rule,) = rules_of({"blocks[0].*": {"weights": 8}})
    assert with_rules(Recipe.minmax(rules=[Rule("fc", weights=4)]), [rule]).rules[1] is rule
    assert rule.matches("blocks[0].*", None)
    assert not rule.matches("blocks0.fc", None)
