"""Recipes: every error with its values, and which rule has the last word."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from fxquant.errors import FxquantError, RecipeError
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.rule import Rule
from fxquant.recipe.spec import CallSpec, TensorSpec

CONV, LINEAR = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
DYNAMIC = (
    "would search at every batch; choose range='minmax', or 'aciq' with clip='report', 'corrected' "
    "or 'weighted'"
)
WEIGHTS = TensorSpec(symmetric=True, per_channel=True)
ACTIVATIONS = TensorSpec()


def options(**values: Any) -> dict[str, Any]:
    """Return arguments that mypy would refuse, as a user may pass them."""
    return values


def bits_of(recipe: Recipe, name: str, module: nn.Module | None = None) -> tuple[Any, Any]:
    """Return the bits of weights and activations at a call: None where it stays in float."""
    spec = recipe.for_call(name, module)
    return spec.weights and spec.weights.bits, spec.activations and spec.activations.bits


BITS = "choose 2 to 8, or 16 for activations"
SPEC = "give a TensorSpec, a number of bits, None or 'inherit'"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: Recipe(end_bits=16),
        "end_bits=16: choose 2 to 8, or None for no more than the others",
    ),
    (
        lambda: Recipe(**options(end_bits="8")),
        "end_bits='8': choose 2 to 8, or None for no more than the others",
    ),
    (lambda: TensorSpec(bits=1), f"bits=1: {BITS}"),
    (lambda: TensorSpec(bits=0), f"bits=0: {BITS}"),
    (lambda: TensorSpec(bits=-8), f"bits=-8: {BITS}"),
    (lambda: TensorSpec(bits=9), f"bits=9: {BITS}"),
    (lambda: TensorSpec(bits=32), f"bits=32: {BITS}"),
    (lambda: TensorSpec(bits=True), f"bits=True: {BITS}"),
    (lambda: TensorSpec(**options(bits="8")), f"bits='8': {BITS}"),
    (lambda: TensorSpec(**options(bits=None)), f"bits=None: {BITS}"),
    (lambda: TensorSpec(**options(bits=4.0)), f"bits=4.0: {BITS}"),
    (
        lambda: TensorSpec(**options(range="minmx")),
        "range='minmx': choose one of minmax, ema, percentile, mse, aciq, bn, cross_entropy; "
        "did you mean 'minmax'?",
    ),
    (
        lambda: TensorSpec(**options(distribution="normal")),
        "distribution='normal': choose one of auto, laplace, gauss",
    ),
    (
        lambda: TensorSpec(**options(clip=None)),
        "clip=None: choose one of report, corrected, weighted, optimal",
    ),
    (lambda: TensorSpec(percentile=50), "percentile=50: choose a value in (50, 100]"),
    (lambda: TensorSpec(percentile=100.1), "percentile=100.1: choose a value in (50, 100]"),
    (lambda: TensorSpec(percentile=0.9999), "percentile=0.9999: choose a value in (50, 100]"),
    (lambda: TensorSpec(percentile=float("nan")), "percentile=nan: choose a value in (50, 100]"),
    (lambda: TensorSpec(momentum=0), "momentum=0: choose a value in (0, 1)"),
    (lambda: TensorSpec(momentum=1), "momentum=1: choose a value in (0, 1)"),
    (lambda: Rule(""), "Rule(''): give a glob on names or a module type"),
    (lambda: Rule(**options(match=3)), "Rule(3): give a glob on names or a module type"),
    (
        lambda: Rule(**options(match=int)),
        "Rule(<class 'int'>): give a glob on names or a module type",
    ),
    (
        lambda: Rule(**options(match=LINEAR)),
        "Rule(Linear(in_features=1, out_features=1, bias=True)): "
        "give a glob on names or a module type",
    ),
    (lambda: Rule("fc", **options(weights="4")), f"Rule('fc'): weights='4': {SPEC}"),
    (lambda: Rule("fc", **options(activations=4.5)), f"Rule('fc'): activations=4.5: {SPEC}"),
    (lambda: Rule("fc", weights=1), "Rule('fc'): weights=1: choose 2 to 8"),
    (
        lambda: Rule("fc", activations=True),
        "Rule('fc'): activations=True: choose 2 to 8 or 16",
    ),
    (
        lambda: Recipe(weights=TensorSpec(bits=16)),
        "weights: bits=16: choose 2 to 8 (16 is for activations)",
    ),
    (
        lambda: Recipe(rules=(Rule("fc", weights=TensorSpec(bits=16)),)),
        "rule 'fc' (#0): weights: bits=16: choose 2 to 8 (16 is for activations)",
    ),
    (
        lambda: Recipe(weights=TensorSpec(range="ema")),
        "weights: range='ema' is for activations",
    ),
    (
        lambda: Recipe(activations=TensorSpec(per_channel=True, range="mse")),
        "activations: per_channel=True with range='mse': no histogram is kept for each channel; "
        "choose 'minmax', 'ema', 'aciq' or 'bn'",
    ),
    (
        lambda: Recipe(rules=(Rule("fc", activations=TensorSpec(dynamic=True, range="ema")),)),
        "rule 'fc' (#0): activations: dynamic=True with range='ema' " + DYNAMIC,
    ),
    (
        lambda: Recipe.aciq(activation_dynamic=True, activation_clip="optimal"),
        "activations: dynamic=True with clip='optimal' " + DYNAMIC,
    ),
    (
        lambda: Recipe(activations=TensorSpec(range="cross_entropy")),
        "activations: range='cross_entropy' is for the model's outputs: "
        "Recipe(logits=TensorSpec(range='cross_entropy'))",
    ),
    (
        lambda: Recipe(weights=TensorSpec(dynamic=True)),
        "weights: dynamic=True: weights do not change from batch to batch",
    ),
    (lambda: Recipe(**options(logits=8)), "logits=8: give a TensorSpec or None"),
    (lambda: Recipe(**options(products=8)), "products=8: give a TensorSpec or None"),
    (
        lambda: Recipe(products=TensorSpec(per_channel=True)),
        "products: dynamic, per_channel and range='bn' are for activations",
    ),
    (
        lambda: Recipe.minmax(products=TensorSpec(bits=4), target="executorch"),
        "target 'executorch': activations of 4 bits: it has kernels for 8",
    ),
    (
        lambda: Recipe(logits=TensorSpec(range="bn")),
        "logits: dynamic, per_channel and range='bn' are for activations",
    ),
    (
        lambda: Recipe(**options(bias_correction="weight")),
        "bias_correction='weight': choose True, False or 'weights'; did you mean 'weights'?",
    ),
    (
        lambda: Recipe.adaround(bias_correction="weights"),
        "bias_correction='weights' changes what a reconstruction learned: choose one",
    ),
    (
        lambda: Recipe(**options(rules=("fc",))),
        "rules: 'fc' is a str, not a Rule: rules=[Rule('fc', weights=8)]",
    ),
    (
        lambda: Recipe.minmax(weight_bits=1),
        "weight_bits=1: choose 2 to 8, or None for activations only",
    ),
    (
        lambda: Recipe.aciq(activation_bits=12),
        "activation_bits=12: choose 2 to 8 or 16, or None for weights only",
    ),
    (
        lambda: Recipe.aciq(activation_bits=0),
        "activation_bits=0: choose 2 to 8 or 16, or None for weights only",
    ),
    (lambda: Recipe.minmax(skip=[""]), "Rule(''): give a glob on names or a module type"),
    (
        lambda: Recipe.named("acq"),
        "recipe 'acq': choose one of aciq, minmax, adaround, or a Recipe; did you mean 'aciq'?",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_an_error_prints_the_values_and_what_to_choose(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value) == message


def test_a_recipe_error_is_a_value_error() -> None:
    assert issubclass(RecipeError, ValueError)
    assert issubclass(RecipeError, FxquantError)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_the_bits_that_exist_are_taken(bits: int) -> None:
    assert Recipe.minmax(activation_bits=bits).activations == TensorSpec(bits=bits)
    if bits <= 8:
        assert Recipe.minmax(weight_bits=bits).weights == dataclasses.replace(WEIGHTS, bits=bits)


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        (TensorSpec(), "bits"),
        (Rule("fc"), "skip"),
        (Recipe(rules=(Rule(nn.Linear, weights=4),)), "weights"),
        (CallSpec(None, None), "weights"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_of_it_is_frozen_hashable_and_picklable(instance: Any, field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, field, None)
    for other in (copy.deepcopy(instance), pickle.loads(pickle.dumps(instance))):
        assert other == instance
        assert hash(other) == hash(instance)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec(), "8 bits minmax"),
        (TensorSpec(bits=4, range="mse"), "4 bits mse"),
        (TensorSpec(bits=3, range="aciq"), "3 bits aciq/corrected"),
        (TensorSpec(range="aciq", clip="report", distribution="gauss"), "8 bits aciq/report"),
    ],
)
def test_a_spec_prints_its_bits_and_its_range(spec: TensorSpec, text: str) -> None:
    assert str(spec) == text


def test_named_recipes_are_those_at_eight_bits() -> None:
    assert Recipe.named("aciq") == Recipe.aciq(weight_bits=8, activation_bits=8)
    assert Recipe.named("minmax") == Recipe.minmax() == Recipe()
    assert Recipe.named("aciq") != Recipe.named("minmax")


def test_aciq_is_the_reports_first_system() -> None:
    recipe = Recipe.aciq()
    assert recipe.weights == WEIGHTS
    assert recipe.activations == TensorSpec(range="aciq")
    assert recipe.bias_correction
    assert not Recipe.aciq(bias_correction=False).bias_correction
    assert not Recipe.minmax().bias_correction


def test_options_reach_the_activations() -> None:
    recipe = Recipe.aciq(
        activation_clip="report", activation_distribution="gauss", activation_symmetric=True
    )
    assert recipe.activations == TensorSpec(
        range="aciq", clip="report", distribution="gauss", symmetric=True
    )
    assert recipe.weights == WEIGHTS


def test_no_activation_bits_means_weights_only() -> None:
    recipe = Recipe.aciq(activation_bits=None)
    assert recipe.activations is None
    assert bits_of(recipe, "conv") == (8, None)


def test_without_rules_each_call_gets_the_recipes_specs() -> None:
    assert Recipe().for_call("conv", CONV) == CallSpec(WEIGHTS, ACTIVATIONS)


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ("fc", ["fc"]),
        ("layer1.*", ["layer1.conv", "layer1.0.conv"]),
        ("*.conv", ["layer1.conv", "layer1.0.conv", "layer12.conv"]),
        ("layer1?.conv", ["layer12.conv"]),
        ("layer[01].conv", ["layer1.conv"]),
        ("LAYER1.*", []),
        ("conv", []),
        ("*", ["fc", "layer1.conv", "layer1.0.conv", "layer12.conv"]),
    ],
)
def test_a_glob_matches_the_whole_name(match: str, names: list[str]) -> None:
    all_names = ["fc", "layer1.conv", "layer1.0.conv", "layer12.conv"]
    assert [name for name in all_names if Rule(match).matches(name, CONV)] == names


def test_a_type_matches_its_instances_and_subclasses_by_module() -> None:
    rule = Rule(nn.Linear)
    assert rule.matches("any", LINEAR)
    assert rule.matches("any", nn.MultiheadAttention(2, 1).out_proj)
    assert not rule.matches("any", CONV)
    assert not rule.matches("linear", None)  # a function call has no module


def test_the_last_matching_rule_wins() -> None:
    rules = [Rule("*", weights=4, activations=4), Rule("fc", weights=6), Rule(nn.Linear, weights=5)]
    assert bits_of(Recipe(rules=tuple(rules)), "fc", LINEAR) == (5, 4)
    assert bits_of(Recipe(rules=tuple(rules[::-1])), "fc", LINEAR) == (4, 4)
    assert bits_of(Recipe(rules=tuple(rules)), "fc", CONV) == (6, 4)


def test_a_number_changes_the_bits_alone() -> None:
    recipe = Recipe.aciq(activation_clip="report", rules=[Rule("fc", weights=4, activations=16)])
    spec = recipe.for_call("fc", LINEAR)
    assert spec.weights == dataclasses.replace(WEIGHTS, bits=4)
    assert spec.activations == TensorSpec(bits=16, range="aciq", clip="report")


def test_a_spec_replaces_all_and_none_leaves_float() -> None:
    spec = TensorSpec(bits=3, range="mse")
    recipe = Recipe(rules=(Rule("a", weights=spec), Rule("b", activations=None), Rule("c")))
    assert recipe.for_call("a", None) == CallSpec(spec, ACTIVATIONS)
    assert recipe.for_call("b", None) == CallSpec(WEIGHTS, None)
    assert recipe.for_call("c", None) == CallSpec(WEIGHTS, ACTIVATIONS)


def test_skip_leaves_both_sides_in_float() -> None:
    recipe = Recipe.minmax(skip=["fc", nn.Conv2d], rules=[Rule("*", weights=4)])
    assert bits_of(recipe, "fc", LINEAR) == (None, None)
    assert bits_of(recipe, "stem", CONV) == (None, None)
    assert bits_of(recipe, "head", LINEAR) == (4, 8)


def test_bits_after_a_skip_bring_back_the_recipes_own_spec() -> None:
    rules = [Rule("*", skip=True), Rule("layer1.*", weights=4, activations=6)]
    spec = Recipe.aciq(rules=rules).for_call("layer1.conv", CONV)
    assert spec.weights == dataclasses.replace(WEIGHTS, bits=4)
    assert spec.activations == TensorSpec(bits=6, range="aciq")


def test_activation_bits_for_one_call_of_a_weights_only_recipe() -> None:
    recipe = Recipe.minmax(activation_bits=None, rules=[Rule("fc", activations=8)])
    assert bits_of(recipe, "fc", LINEAR) == (8, 8)
    assert bits_of(recipe, "conv", CONV) == (8, None)


def test_rules_of_any_iterable_are_kept_as_a_tuple() -> None:
    rules = [Rule("fc", weights=4)]
    recipe = Recipe(**options(rules=rules))
    rules.clear()
    assert recipe.rules == (Rule("fc", weights=4),)


@pytest.mark.parametrize("side", ["weights", "activations"])
def test_a_number_in_place_of_a_recipes_spec_is_refused(side: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**options(**{side: 4}))
    assert f"{side}=4" in str(caught.value)


def test_an_option_of_activations_that_stay_in_float_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.aciq(activation_bits=None, activation_clip="report")
    assert "clip" in str(caught.value)
