"""A recipe goes into a document and comes back the same; what is none is refused by name."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fxquant import TARGETS, Budget, Recipe, RecipeError, Reconstruction, Rule, Target, TensorSpec
from tests.recipe.drawn import recipes

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
ROOT = Path(__file__).parents[2]


class Own(nn.Linear):
    """A module type of a caller's."""


@settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=SLOW)
@given(recipes())
def test_a_document_is_the_recipe(recipe: Recipe) -> None:
    text = recipe.to_json()
    again = Recipe.from_json(text)
    assert again == recipe
    assert again.to_json() == text
    assert "NaN" not in text


def test_a_document_says_what_differs_from_the_defaults() -> None:
    recipe = Recipe.adaround(
        rules=[Rule("fc", weights=8), Rule("stem", activations=None)],
        skip=[nn.Linear],
        end_bits=8,
        target="tensorrt",
        steps=200,
    )
    assert json.loads(recipe.to_json()) == {
        "fxquant_recipe": 1,
        "weights": {
            "bits": 4,
            "symmetric": True,
            "per_channel": True,
            "range": "mse",
            "clip_weight": 2.0,
        },
        "activations": {"range": "mse"},
        "reconstruction": {"steps": 200},
        "rules": [
            {"match": "fc", "weights": 8},
            {"match": "stem", "activations": None},
            {"type": "torch.nn.Linear", "skip": True},
        ],
        "end_bits": 8,
        "target": "tensorrt",
    }
    assert Recipe().to_json() == '{\n  "fxquant_recipe": 1\n}'


def test_latencies_keep_their_widths() -> None:
    recipe = Recipe.mixed(max_latency=1.5, latency={"fc": {4: 1e-3}}, weight_bits=(4,))
    assert json.loads(recipe.to_json())["budget"]["latency"] == {"fc": {"4": 0.001}}
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (nn.Conv2d, "torch.nn.Conv2d"),
        (nn.modules.conv._ConvNd, "torch.nn.modules.conv:_ConvNd"),
        (
            torchvision.ops.misc.Conv2dNormActivation,
            "torchvision.ops.misc:Conv2dNormActivation",
        ),
    ],
)
def test_types_of_pytorchs_go_by_name(kind: type[nn.Module], name: str) -> None:
    text = Recipe(rules=(Rule(kind, weights=4),)).to_json()
    assert json.loads(text)["rules"] == [{"type": name, "weights": 4}]
    assert Recipe.from_json(text).rules[0].match is kind


def test_types_of_the_callers_are_given_again() -> None:
    class Local(nn.Linear):
        pass

    recipe = Recipe.minmax(skip=[Own, Local])
    text = recipe.to_json()
    assert Recipe.from_json(text, custom=[Own, Local]) == recipe
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert str(caught.value) == (
        f"from_json: rules[0]: type='{__name__}:Own' is no module type of PyTorch's or "
        "torchvision's: if it is yours, Recipe.from_json(text, custom=[Own])"
    )


def test_two_types_of_one_name_have_no_document() -> None:
    other = type("Own", (nn.Linear,), {"__module__": __name__})
    with pytest.raises(RecipeError, match=r"rules name two module types '.*:Own': give one"):
        Recipe.minmax(skip=[Own, other]).to_json()


HEAD = '"fxquant_recipe": 1'
REFUSED: dict[str, tuple[Any, str]] = {
    "not a str": (b"{}", "from_json: got a bytes: give the document as a str"),
    "a path": (
        "mine.json",
        "from_json: 'mine.json' is no JSON: Expecting value: line 1 column 1 (char 0); "
        "of a file give the text: Path(…).read_text()",
    ),
    "a list": ("[]", "from_json: a list: give a JSON object, {…}"),
    "another document": (
        '{"weights": {}}',
        "from_json: no 'fxquant_recipe': this is not what Recipe.to_json() wrote",
    ),
    "a later version": (
        '{"fxquant_recipe": 2}',
        "from_json: fxquant_recipe=2: written by a later fxquant; this one reads up to 1: "
        "install another",
    ),
    "no version": (
        '{"fxquant_recipe": true}',
        "from_json: fxquant_recipe=True: versions are 1 to 1",
    ),
    "an unknown field": (
        f'{{{HEAD}, "weigths": null}}',
        "from_json: Recipe: unknown option 'weigths': did you mean weights?",
    ),
    "an unknown field of a spec": (
        f'{{{HEAD}, "weights": {{"bit": 4}}}}',
        "from_json: weights: TensorSpec: unknown option 'bit': did you mean bits?",
    ),
    "an unknown field of a rule": (
        f'{{{HEAD}, "rules": [{{"match": "a"}}, {{"match": "b", "wieghts": 4}}]}}',
        "from_json: rules[1]: Rule: unknown option 'wieghts': did you mean weights?",
    ),
    "a spec that is text": (
        f'{{{HEAD}, "weights": "int4"}}',
        "from_json: weights='int4': give a TensorSpec or None, or use Recipe.aciq(…)",
    ),
    "bits that are text": (
        f'{{{HEAD}, "weights": {{"bits": "4"}}}}',
        "from_json: weights: bits='4': choose 2 to 8, or 16 for activations",
    ),
    "a flag that is text": (
        f'{{{HEAD}, "smoothing": "true"}}',
        "from_json: smoothing='true': choose True or False",
    ),
    "rules that are no list": (
        f'{{{HEAD}, "rules": {{"match": "fc"}}}}',
        "from_json: rules: {'match': 'fc'} is a dict, not a Rule: rules=[Rule('fc', weights=8)]",
    ),
    "a rule that is text": (
        f'{{{HEAD}, "rules": ["fc"]}}',
        "from_json: rules[0]: 'fc': give an object, as {'match': 'fc', 'weights': 8}",
    ),
    "a rule of nothing": (
        f'{{{HEAD}, "rules": [{{"weights": 4}}]}}',
        "from_json: rules[0]: Rule: match is missing: give match=…",
    ),
    "a rule of both": (
        f'{{{HEAD}, "rules": [{{"match": "fc", "type": "torch.nn.Linear"}}]}}',
        "from_json: rules[0]: 'type' beside 'match': give one of them",
    ),
    "a field twice": (
        f'{{{HEAD}, "end_bits": 4, "end_bits": 8}}',
        "from_json: 'end_bits' is given twice in one object",
    ),
    "NaN": (
        f'{{{HEAD}, "weights": {{"clip_weight": NaN}}}}',
        "from_json: NaN: a recipe has finite numbers alone",
    ),
    "beyond a float": (
        f'{{{HEAD}, "weights": {{"clip_weight": 1e999}}}}',
        "from_json: weights: clip_weight=inf: choose a positive number",
    ),
    "a target by no name": (
        f'{{{HEAD}, "target": {{"signed": true}}}}',
        "from_json: target: Target: name is missing: give name=…",
    ),
    "a latency of words": (
        f'{{{HEAD}, "budget": {{"max_latency": 1, "latency": {{"fc": {{"four": 1}}}}}}}}',
        "from_json: budget: Budget: latency={'fc': {'four': 1}}: "
        "give {name: {bits: seconds}}, as in {'fc': {4: 0.001}}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_document_is_refused_by_name(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name",
    [
        "os:system", "builtins:eval", "subprocess:Popen", "torch:load", "torch.nn:os",
        "torch.nn.system", "torch.nn.functional", "torch.nn.modules.module:torch",
        "antigravity:fly", "__main__:Own", "torch.nn.modules..:x", "torch.nn.modules.\0:x",
        "torchvision.models._api:Weights", "", ":", "fxquant:Recipe", "torch.nn.__name__",
    ],
)  # fmt: skip
def test_a_document_names_module_types_alone(name: str) -> None:
    text = json.dumps({"fxquant_recipe": 1, "rules": [{"type": name, "skip": True}]})
    with pytest.raises(RecipeError, match="is no module type"):
        Recipe.from_json(text)


def test_a_hostile_document_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("print('imported')")
    names = ["trap:Own", "trap.Own", "torch.nn.trap:Own", "torch.nn.modules.trap:Own"]
    script = f"""
import json, sys, fxquant
before = set(sys.modules)
for name in {names}:
    try:
        fxquant.Recipe.from_json(json.dumps({{"fxquant_recipe": 1, "rules": [{{"type": name}}]}}))
    except fxquant.RecipeError:
        pass
print(sorted(set(sys.modules) - before))
"""
    paths = f"{ROOT}:{tmp_path}"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from([each.name for each in fields(Recipe)]), JSON)
def test_any_value_of_any_field_is_a_recipe_or_refused(name: str, value: Any) -> None:
    text = json.dumps({"fxquant_recipe": 1, name: value})
    try:
        recipe = Recipe.from_json(text)
    except RecipeError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe


PARTS = {
    "weights": TensorSpec, "reconstruction": Reconstruction, "budget": Budget, "target": Target,
}  # fmt: skip


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.data(), st.sampled_from(sorted(PARTS)), JSON)
def test_any_value_inside_is_a_recipe_or_refused(
    data: st.DataObject, part: str, value: Any
) -> None:
    name = data.draw(st.sampled_from([each.name for each in fields(PARTS[part])]))
    fixed: dict[str, Any] = {"budget": {"average_bits": 3}, "target": {"name": "mine"}}
    text = json.dumps({"fxquant_recipe": 1, part: {**fixed.get(part, {}), name: value}})
    try:
        recipe = Recipe.from_json(text)
    except RecipeError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000])
def test_a_document_that_is_too_deep_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_json(text)


def test_what_version_1_leaves_out_stays_what_it_was() -> None:
    """A changed default would give old documents another meaning: raise the version."""
    recipe = Recipe.from_json('{"fxquant_recipe": 1, "reconstruction": {}}')
    weights = recipe.weights
    assert weights is not None
    assert recipe.target is TARGETS["x86"]
    assert {each.name: getattr(weights, each.name) for each in fields(weights)} == {
        "bits": 8, "symmetric": True, "signed": False, "per_channel": True, "range": "minmax",
        "percentile": 99.99, "momentum": 0.9, "distribution": "auto", "clip": "corrected",
        "dynamic": False, "bit_allocation": False, "clip_weight": 1.0,
    }  # fmt: skip
    assert recipe.activations == TensorSpec(
        bits=8, symmetric=False, signed=False, per_channel=False, range="minmax", percentile=99.99,
        momentum=0.9, distribution="auto", clip="corrected", dynamic=False, bit_allocation=False,
        clip_weight=1.0,
    )  # fmt: skip
    assert recipe.reconstruction == Reconstruction(
        method="adaround", parallel=False, blocks=False, drop=0.5, activation_learning_rate=4e-5,
        samples=1024, steps=1000, rows=128, pool_rows=32768, learning_rate=0.1, regularization=0.3,
        warm_start=0.2, beta=(8.0, 2.0), held_out=0.125, batch_size=64, max_bytes=4 << 30,
        bfloat16=True, seed=0,
    )  # fmt: skip
    left = {"weights", "activations", "reconstruction", "target"}
    assert {each.name: getattr(recipe, each.name) for each in fields(recipe)
            if each.name not in left} == {
        "equalization": False, "smoothing": False, "bias_correction": False,
        "batchnorm_tuning": False, "budget": None, "rules": (), "end_bits": None, "logits": None,
        "products": None,
    }  # fmt: skip
