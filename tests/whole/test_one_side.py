"""Weights alone or activations alone in integers: which of the two hurts?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CaptureError, LoweringError, Recipe, RecipeError, Rule
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net, outputs, whole

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu()),
        a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def quantized(recipe: Recipe) -> Any:
    return whole(fxquant.quantize(network(), [X], recipe, progress=False))


def kinds(model: nn.Module) -> tuple[int, int]:
    """Return how many layers and how many activations are quantized."""
    modules = list(model.modules())
    return tuple(
        sum(isinstance(m, kind) for m in modules) for kind in (QuantizedLayer, FakeQuantize)
    )  # type: ignore[return-value]


def test_noise_of_both_sides_is_that_of_one_and_of_the_other() -> None:
    float_outputs = outputs(network(), X)
    noise = {}
    for name, bits in {"both": (4, 4), "weights": (4, None), "activations": (None, 4)}.items():
        model = quantized(Recipe.minmax(weight_bits=bits[0], activation_bits=bits[1]))
        assert kinds(model) == (3 * (bits[0] is not None), 3 * (bits[1] is not None))
        noise[name] = 10 ** (-sqnr(float_outputs, outputs(model, X)) / 10)
    assert noise["both"] == pytest.approx(noise["weights"] + noise["activations"], rel=0.3)


@pytest.mark.parametrize("target", fxquant.TARGETS)
def test_activations_alone_are_rounded_where_they_are_beside_weights(target: str) -> None:
    both, alone = (quantized(Recipe.minmax(weight_bits=bits, target=target)) for bits in (8, None))
    assert [kinds(model)[1] for model in (both, alone)] == [kinds(both)[1]] * 2


@pytest.mark.parametrize("recipe", [Recipe.aciq(weight_bits=None), Recipe(weights=None)])
def test_any_recipe_may_leave_the_weights_in_float(recipe: Recipe) -> None:
    model = quantized(recipe)
    assert kinds(model) == (0, 3)
    rows = fxquant.report(model).rows
    assert [(bool(row.weights), bool(row.inputs)) for row in rows] == [(False, True)] * len(rows)
    assert "its weight in float, by the recipe" in str(fxquant.report(model))
    with pytest.raises(LoweringError, match="all weights are in float"):
        fxquant.lower(model)
    assert torch.equal(outputs(fxquant.to_qdq(model), X), outputs(model, X))


def test_rules_say_it_for_one_layer_and_take_it_back_for_another() -> None:
    one = quantized(Recipe.minmax(rules=[Rule("b", weights=None)]))
    other = quantized(Recipe.minmax(weight_bits=None, rules=[Rule("b", weights=4)]))
    for model, layers in ((one, ["a", "c"]), (other, ["b"])):
        found = [name for name, m in model.named_modules() if isinstance(m, QuantizedLayer)]
        assert found == layers
        assert kinds(model)[1] == 3
    assert other.get_submodule("b").weight_spec.symmetric


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": None, "activation_bits": None}, "both stay in float: nothing to quantize"),
        ({"weight_bits": None, "bias_correction": "weights"}, "the weights stay in float"),
        ({"weight_bits": None, "budget": fxquant.Budget(average_bits=4)}, "budget: it is for weig"),
        (
            {"weight_bits": None, "reconstruction": fxquant.Reconstruction()},
            "reconstruction: it is for weights",
        ),
        ({"weight_bits": 0}, "bits=0"),
    ],
)
def test_what_asks_for_weights_that_stay_in_float_is_an_error(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.minmax(**options)


def test_a_model_of_which_additions_alone_are_left_is_refused_where_it_is_prepared() -> None:
    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) + x)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="nothing to quantize"):
        fxquant.prepare(Adding(), Recipe.minmax(skip=["a", "b"]))
