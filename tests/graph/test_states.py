"""Each function takes the models it is for, and says what another one is."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError, PassError, Recipe, Rule
from fxquant.errors import kind_of
from fxquant.graph.states import recipe_of, require_converted, require_float, require_prepared
from tests.helpers import needs_int8


class Guarded(nn.Module):
    """Cannot be traced, but for `body`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        return self.body(x) if x.isfinite().all() else x


def whole() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe.minmax(weight_bits=4)
KINDS = pytest.mark.parametrize(
    ("make", "prefix"), [(whole, ""), (Guarded, "body.")], ids=["one graph", "regions"]
)


def message(error: type[Exception], function: Any, *arguments: Any) -> str:
    with pytest.raises(error) as caught:
        function(*arguments)
    return str(caught.value)


@KINDS
def test_a_float_model_is_float_and_not_prepared(make: Any, prefix: str) -> None:
    model = make()
    require_float(model)
    assert message(PassError, require_prepared, model, "calibrate") == (
        f"calibrate: got a {type(model).__name__}: give what fxquant.prepare(model) returned"
    )


@KINDS
def test_a_prepared_model_gives_its_recipe_and_is_not_float(make: Any, prefix: str) -> None:
    prepared = fxquant.prepare(make(), RECIPE)
    assert require_prepared(prepared, "convert") == RECIPE
    assert message(PassError, require_float, prepared) == (
        f"prepare: the model is prepared already: {prefix + 'observers.input_1'!r} is an Observer; "
        "give the float model"
    )


@KINDS
def test_a_converted_model_is_neither(make: Any, prefix: str) -> None:
    converted = fxquant.quantize(make(), [X], RECIPE)
    assert message(PassError, require_prepared, converted, "convert") == (
        "convert: got a converted model: give what fxquant.prepare(model) returned"
    )
    name = f"{prefix}traced.0" if prefix else "0"
    assert message(PassError, require_float, converted) == (
        f"prepare: the model is converted already: {name!r} is a QuantizedLinear; "
        "give the float model"
    )


@KINDS
def test_only_a_converted_model_is_converted(make: Any, prefix: str) -> None:
    converted = fxquant.quantize(make(), [X], RECIPE)
    assert require_converted(converted, "lower") == RECIPE
    give = "give what fxquant.convert(prepared) returned"
    for model, kind in (
        (make(), type(make()).__name__),
        (fxquant.prepare(make()), "prepared model"),
    ):
        assert message(PassError, require_converted, model, "lower") == (
            f"lower: got a {kind}: {give}"
        )


@needs_int8
@KINDS
@pytest.mark.parametrize("part", [False, True], ids=["lowered", "lowered in part"])
def test_a_lowered_model_is_lowered_whatever_stayed(make: Any, prefix: str, part: bool) -> None:
    model = nn.Sequential(make(), nn.Linear(4, 2)) if part else make()
    recipe = Recipe.minmax(rules=(Rule("1", activations=None),)) if part else RECIPE
    lowered = fxquant.lower(fxquant.quantize(model, [X], recipe))
    assert message(PassError, require_converted, lowered, "lower") == (
        "lower: got a model that is lowered already: give what fxquant.convert(prepared) returned"
    )
    assert message(PassError, require_prepared, lowered, "convert") == (
        "convert: got a converted model: give what fxquant.prepare(model) returned"
    )
    assert "prepare: the model is lowered already: " in message(PassError, require_float, lowered)


@KINDS
def test_each_form_of_a_model_tells_its_recipe(make: Any, prefix: str, tmp_path: Path) -> None:
    recipe = Recipe.aciq(weight_bits=4, rules=[Rule("*", activations=6)])
    prepared = fxquant.calibrate(fxquant.prepare(make(), recipe), [X])
    converted = fxquant.convert(prepared)
    fxquant.save(converted, tmp_path / "model.fxq")
    loaded = fxquant.load(tmp_path / "model.fxq", custom=[Guarded])
    for model in (prepared, converted, copy.deepcopy(converted), loaded):
        assert recipe_of(model) == recipe
    assert repr(recipe_of(loaded)) == repr(recipe)


@needs_int8
@KINDS
def test_a_lowered_model_tells_its_recipe(make: Any, prefix: str) -> None:
    assert recipe_of(fxquant.lower(fxquant.quantize(make(), [X], RECIPE))) == RECIPE


def test_of_mixed_bits_the_recipe_has_those_that_were_allocated() -> None:
    recipe = Recipe.mixed(average_bits=4, weight_bits=(2, 4, 8), reconstruction=None)
    made = recipe_of(fxquant.quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), [X], recipe))
    assert made.rules == (Rule("0", weights=4),)
    assert made.budget is None


@pytest.mark.parametrize(
    "model", [whole(), fxquant.trace(whole()), 3], ids=["float", "traced", "no model"]
)
def test_what_fxquant_has_not_made_has_no_recipe(model: Any) -> None:
    assert message(PassError, recipe_of, model) == (
        f"recipe_of: got a {type(model).__name__}: give what prepare, convert, lower or load "
        "returned"
    )


@pytest.mark.parametrize("value", [3, None, 2.5], ids=repr)
def test_what_is_no_module_is_an_error(value: Any) -> None:
    kind = kind_of(value)
    assert message(CaptureError, require_float, value) == f"model is {kind}: give a torch.nn.Module"
    assert message(PassError, require_prepared, value, "convert") == (
        f"convert: got {kind}: give what fxquant.prepare(model) returned"
    )
    assert message(PassError, require_converted, value, "lower") == (
        f"lower: got {kind}: give what fxquant.convert(prepared) returned"
    )
