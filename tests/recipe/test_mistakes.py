"""What a newcomer types wrongly, and what comes back: where, which value, and what to type."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import (
    TARGETS,
    Budget,
    FxquantError,
    Recipe,
    RecipeError,
    Reconstruction,
    Rule,
    Target,
    TensorSpec,
)  # fmt: skip
from fxquant.ladder import Rung, search
from fxquant.recipe import as_recipe

LOADER = [torch.zeros(2, 4)]


def typed(make: Any, *arguments: Any, **options: Any) -> Any:
    """Call something with arguments that mypy would refuse."""
    return make(*arguments, **options)


def quantized(recipe: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    return fxquant.quantize(model, LOADER, recipe, progress=False)


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    # Bits: which side, which rule.
    "1 bit": (
        lambda: Recipe.aciq(weight_bits=1),
        "weight_bits=1: choose 2 to 8, or None for activations only",
    ),
    "1 bit, learned": (lambda: Recipe.adaround(weight_bits=1), "weight_bits=1: choose 2 to 8"),
    "1 bit of activations": (
        lambda: Recipe.adaround(activation_bits=1),
        "activation_bits=1: choose 2 to 8 or 16, or None for weights only",
    ),
    "bits as a float": (
        lambda: typed(Recipe.aciq, weight_bits=4.0),
        "weight_bits=4.0: choose 2 to 8, or None for activations only",
    ),
    "bits as text": (
        lambda: typed(Recipe.adaround, activation_bits="4"),
        "activation_bits='4': choose 2 to 8 or 16, or None for weights only",
    ),
    "bits as a flag": (
        lambda: Recipe.adaround(weight_bits=True),
        "weight_bits=True: choose 2 to 8",
    ),
    "no weights to learn": (
        lambda: typed(Recipe.adaround, weight_bits=None),
        "weight_bits=None: choose 2 to 8",
    ),
    "1 bit by a rule": (
        lambda: Recipe.aciq(rules=[Rule("layer4.*", weights=1)]),
        "Rule('layer4.*'): weights=1: choose 2 to 8",
    ),
    "12 bits by a rule": (
        lambda: Rule(nn.Linear, activations=12),
        "Rule(nn.Linear): activations=12: choose 2 to 8 or 16",
    ),
    "a rule that the recipe cannot hold": (
        lambda: Recipe.aciq(
            rules=[Rule("fc"), Rule(nn.Conv2d), Rule("layer4.*", weights=TensorSpec(range="bn"))]
        ),
        "rule 'layer4.*' (#2): weights: range='bn' is for activations",
    ),
    "a rule that the target cannot hold": (
        lambda: Recipe.aciq(target="executorch", rules=[Rule("fc", activations=4)]),
        "rule 'fc' (#0): target 'executorch': activations of 4 bits: it has kernels for 8",
    ),
    # Options: the near ones.
    "a typo of adaround's": (
        lambda: typed(Recipe.adaround, stps=100),
        "Recipe.adaround: unknown option 'stps': did you mean steps?",
    ),
    "a typo of mixed's": (
        lambda: typed(Recipe.mixed, max_byte=100),
        "Recipe.mixed: unknown option 'max_byte': did you mean max_bytes?",
    ),
    "a typo of a recipe's": (
        lambda: typed(Recipe, weigths=None),
        "Recipe: unknown option 'weigths': did you mean weights?",
    ),
    "a typo of a spec's": (
        lambda: typed(TensorSpec, bit=4),
        "TensorSpec: unknown option 'bit': did you mean bits?",
    ),
    "a typo of a rule's": (
        lambda: typed(Rule, "fc", weight=4),
        "Rule: unknown option 'weight': did you mean weights?",
    ),
    "a typo of a reconstruction's": (
        lambda: typed(Reconstruction, step=4),
        "Reconstruction: unknown option 'step': did you mean steps?",
    ),
    "a typo of a budget's": (
        lambda: typed(Budget, averge_bits=4),
        "Budget: unknown option 'averge_bits': did you mean average_bits?",
    ),
    "a typo of a target's": (
        lambda: typed(Target, name="mine", sign=True),
        "Target: unknown option 'sign': did you mean signed?",
    ),
    "a word of an option": (
        lambda: typed(Recipe.aciq, bias=True),
        "Recipe.aciq: unknown option 'bias': did you mean bias_correction?",
    ),
    "nothing near": (
        lambda: typed(Recipe.aciq, alpha=2),
        "Recipe.aciq: unknown option 'alpha': help(Recipe.aciq) lists those that there are",
    ),
    "nothing near, of few": (
        lambda: typed(Rule, "fc", alpha=2),
        "Rule: unknown option 'alpha': it has match, skip, weights, activations",
    ),
    "bits of which side": (
        lambda: typed(Recipe.aciq, bits=4),
        "Recipe.aciq: unknown option 'bits': say of what: weight_bits or activation_bits",
    ),
    "channels of which side": (
        lambda: typed(Recipe.aciq, per_channel=True),
        "Recipe.aciq: unknown option 'per_channel': say of what: weight_per_channel or "
        "activation_per_channel",
    ),
    "dynamic is of activations": (
        lambda: typed(Recipe.minmax, dynamic=True),
        "Recipe.minmax: unknown option 'dynamic': say of what: activation_dynamic",
    ),
    "an option of another constructor": (
        lambda: typed(Recipe.minmax, steps=100),
        "Recipe.minmax: unknown option 'steps': it is one of Reconstruction, Recipe.adaround and "
        "Recipe.mixed",
    ),
    "a rule's bits of which side": (
        lambda: typed(Rule, "fc", bits=4),
        "Rule: unknown option 'bits': say of what: weights or activations",
    ),
    "another library's word": (
        lambda: typed(Recipe.adaround, num_iterations=10_000),
        "Recipe.adaround: unknown option 'num_iterations': here it is steps",
    ),
    "another library's word for both sides": (
        lambda: typed(Recipe.aciq, observer="minmax"),
        "Recipe.aciq: unknown option 'observer': say of what: weight_range or activation_range",
    ),
    "a constructor's option in the class": (
        lambda: typed(Recipe, weight_bits=4),
        "Recipe: unknown option 'weight_bits': it is one of Budget, Recipe.minmax, Recipe.aciq, "
        "Recipe.adaround and Recipe.mixed",
    ),
    "bits without their name": (
        lambda: typed(Recipe.aciq, 4, 8),
        "Recipe.aciq: options go by name, as in Recipe.aciq(weight_bits=4, activation_bits=8)",
    ),
    "a spec's bits without their name": (
        lambda: typed(TensorSpec, 4),
        "TensorSpec: options go by name, as in TensorSpec(bits=4)",
    ),
    "a rule's bits without their name": (
        lambda: typed(Rule, "fc", 4),
        "Rule('fc'): skip=4: choose True or False; for bits: weights=4",
    ),
    "a rule of nothing": (lambda: typed(Rule), "Rule: match is missing: give match=…"),
    "an option of weights in float": (
        lambda: Recipe.aciq(weight_bits=None, weight_range="mse"),
        "weight_range: weights stay in float (weight_bits=None)",
    ),
    "an option of activations in float": (
        lambda: Recipe.aciq(activation_bits=None, activation_clip="report"),
        "activation_clip: activations stay in float (activation_bits=None)",
    ),
    "a reconstruction beside its options": (
        lambda: Recipe.adaround(reconstruction=Reconstruction(seed=1), steps=10),
        "reconstruction=Reconstruction(seed=1) beside steps: give these to the Reconstruction",
    ),
    "a budget beside its options": (
        lambda: Recipe.mixed(budget=Budget(max_bytes=9), average_bits=3),
        "budget=Budget(max_bytes=9) beside average_bits: give these to the Budget",
    ),
    "no limit": (
        lambda: Recipe.mixed(),
        "Budget: no limit: give at least one of max_bytes, average_bits, max_bit_operations, "
        "max_latency, max_drop",
    ),
    # Values.
    "a flag as text": (
        lambda: typed(Recipe.aciq, activation_symmetric="no"),
        "activation_symmetric='no': choose True or False",
    ),
    "a typo of a range": (
        lambda: typed(Recipe.aciq, weight_range="mes"),
        "weight_range='mes': choose one of minmax, ema, percentile, mse, aciq, bn, cross_entropy; "
        "did you mean 'mse'?",
    ),
    "a percentile as text": (
        lambda: typed(Recipe.aciq, activation_percentile="99"),
        "activation_percentile='99': choose a value in (50, 100]",
    ),
    "a typo of a method": (
        lambda: typed(Recipe.adaround, method="adarond"),
        "Reconstruction: method='adarond': choose one of adaround, adaquant, gram; "
        "did you mean 'adaround'?",
    ),
    "steps as a float": (
        lambda: typed(Recipe.adaround, steps=1e3),
        "Reconstruction: steps=1000.0: give an integer of at least 1",
    ),
    "a rate as text": (
        lambda: typed(Reconstruction, learning_rate="0.1"),
        "Reconstruction: learning_rate='0.1': give a finite number",
    ),
    "one beta": (
        lambda: typed(Reconstruction, beta=8.0),
        "Reconstruction: beta=8.0: give two numbers of at least 1",
    ),
    "no drop": (
        lambda: typed(Budget, max_drop="1%"),
        "Budget: max_drop='1%': give a percentage below 100",
    ),
    "a typo of a target": (
        lambda: Recipe.aciq(target="onnxruntme"),
        "target='onnxruntme': choose one of x86, openvino, onnxruntime, tensorrt, executorch, "
        "layers, or a Target; did you mean 'onnxruntime'?",
    ),
    "a target's list as text": (
        lambda: typed(Target, name="mine", ways="lower"),
        "Target 'mine': ways='lower': give a tuple",
    ),
    # Lists.
    "rules as text": (
        lambda: typed(Recipe.aciq, rules="layer4.*"),
        "rules: 'layer4.*' is a str, not a Rule: rules=[Rule('layer4.*', weights=8)]",
    ),
    "rules as a dict": (
        lambda: typed(Recipe.aciq, rules={"fc": 8}),
        "rules: {'fc': 8} is a dict, not a Rule: rules=[Rule('fc', weights=8)]",
    ),
    "rules as bits": (lambda: typed(Recipe.aciq, rules=4), "rules=4: give a list"),
    "names of a rule": (
        lambda: typed(Rule, ["fc", "stem"], weights=4),
        "Rule(['fc', 'stem']): give a glob on names or a module type; for several a Rule each",
    ),
    "a target in capitals": (
        lambda: Recipe.aciq(target="TensorRT"),
        "target='TensorRT': choose one of x86, openvino, onnxruntime, tensorrt, executorch, "
        "layers, or a Target; did you mean 'tensorrt'?",
    ),
    "a layer to skip": (
        lambda: typed(Recipe.aciq, skip=[nn.Linear(1, 1)]),
        "Rule(Linear(in_features=1, out_features=1, bias=True)): give a glob on names or a module "
        "type",
    ),
    "nothing to skip": (lambda: typed(Recipe.aciq, skip=None), "skip=None: give a list"),
    # What is given as the recipe.
    "a typo of a recipe": (
        lambda: quantized("adarond"),
        "recipe 'adarond': choose one of aciq, minmax, adaround, or a Recipe; "
        "did you mean 'adaround'?",
    ),
    "mixed by name": (
        lambda: quantized("mixed"),
        "recipe 'mixed' needs a limit: Recipe.mixed(max_bytes=200_000)",
    ),
    "bits by name": (
        lambda: quantized("int8"),
        "recipe 'int8': choose one of aciq, minmax, adaround, or a Recipe; "
        "bits are options: Recipe.aciq(weight_bits=4, activation_bits=8)",
    ),
    "a number by name": (
        lambda: typed(Recipe.named, 3),
        "recipe 3: give one of the names aciq, minmax, adaround",
    ),
    "a function": (
        lambda: quantized(lambda: Recipe.aciq()),
        "recipe is a function: give the Recipe that it returns",
    ),
    "a method": (
        lambda: quantized(Recipe.adaround),
        "recipe is the method Recipe.adaround itself: call it: Recipe.adaround()",
    ),
    "a method with a limit": (
        lambda: quantized(Recipe.mixed),
        "recipe is the method Recipe.mixed itself: call it: Recipe.mixed(max_bytes=200_000)",
    ),
    "the class": (
        lambda: quantized(Recipe),
        "recipe is the class Recipe itself: give one, as Recipe.aciq()",
    ),
    "a dict": (
        lambda: quantized({"weight_bits": 4}),
        "recipe is a dict: give its items as options: Recipe.aciq(weight_bits=4)",
    ),
    "a spec": (
        lambda: quantized(TensorSpec(bits=4)),
        "recipe is a TensorSpec: give it to one: Recipe(weights=TensorSpec(bits=4)) or "
        "Recipe(activations=TensorSpec(bits=4))",
    ),
    "a rule": (
        lambda: quantized(Rule("fc", weights=4)),
        "recipe is a Rule: give it to one: Recipe.aciq(rules=[Rule('fc', weights=4)])",
    ),
    "rules": (
        lambda: quantized([Rule("fc", weights=4)]),
        "recipe is a list of Rules: give it to one: Recipe.aciq(rules=[Rule('fc', weights=4)])",
    ),
    "a budget": (
        lambda: quantized(Budget(max_bytes=9)),
        "recipe is a Budget: give it to one: Recipe.mixed(budget=Budget(max_bytes=9))",
    ),
    "a reconstruction": (
        lambda: quantized(Reconstruction(steps=9)),
        "recipe is a Reconstruction: give it to one: "
        "Recipe.adaround(reconstruction=Reconstruction(steps=9))",
    ),
    "a target": (
        lambda: quantized(TARGETS["tensorrt"]),
        "recipe is a Target: give it to one: Recipe.aciq(target=TARGETS['tensorrt'])",
    ),
    "a number": (
        lambda: quantized(4),
        "recipe is a number of bits: say of what: Recipe.aciq(weight_bits=4)",
    ),
    "a loader": (
        lambda: quantized(torch.utils.data.DataLoader([1])),  # type: ignore[arg-type]
        "recipe is a DataLoader: give a Recipe, as Recipe.aciq(), or its name, as 'aciq'",
    ),
    "a rule of a module's name": (
        lambda: quantized(Recipe.aciq(rules=[Rule("1", weights=4)])),
        "rule '1' (#0) matches no call; a name matches as a whole: did you mean '1.*'?",
    ),
    "a rule of a type that is not there": (
        lambda: quantized(Recipe.aciq(skip=[nn.Conv2d])),
        "rule nn.Conv2d (#0) matches no call; layers are of the types: Linear",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_its_value_and_what_to_type(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("call", ["Recipe.mixed(budget=Budget(max_bytes=9))", "Recipe.aciq()"])
def test_what_a_message_says_to_type_is_a_recipe(call: str) -> None:
    assert isinstance(eval(call, vars(fxquant)), Recipe)


def test_a_recipe_may_be_given_by_name_or_not_at_all() -> None:
    assert as_recipe(None) == as_recipe("aciq") == Recipe.aciq()
    assert as_recipe("adaround") == Recipe.adaround()


def without(package: str, patch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    patch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == package else find(name, *more),
    )


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("prepare", fxquant.prepare),
        ("quantize", lambda model, recipe: fxquant.quantize(model, LOADER, recipe)),
    ],
)
def test_without_scipy_a_budget_is_refused_before_anything_runs(
    name: str, start: Callable[[nn.Module, Recipe], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("scipy", monkeypatch)
    model, calls = nn.Sequential(nn.Linear(4, 2)), []
    model.register_forward_hook(lambda module, *_: calls.append(module))
    with pytest.raises(FxquantError) as caught:
        start(model, Recipe.mixed(average_bits=3))
    assert str(caught.value) == (
        f"{name}: the recipe has a budget: scipy is not installed: pip install fxquant[mixed]"
    )
    assert not calls


def test_without_scipy_a_search_mixes_no_bits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without("scipy", monkeypatch)
    mixed = Rung("mixed", Recipe.mixed(average_bits=3))
    with pytest.raises(RecipeError) as caught:
        search(nn.Sequential(nn.Linear(4, 2)), LOADER, rungs=[mixed], evaluate=lambda _: 0.0)
    assert str(caught.value) == (
        "search: 'mixed' has a budget: scipy is not installed: pip install fxquant[mixed]"
    )
    scores = iter([100.0, 99.9])
    found = search(
        nn.Sequential(nn.Linear(4, 2)), LOADER, evaluate=lambda _: next(scores), progress=False
    )
    assert found.met
    assert "without it no bits are mixed" in caplog.text
