"""A budget in a recipe becomes bits, layer by layer, when the model is converted."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Budget, Recipe, RecipeError, Rule
from fxquant.graph.journal import read_recipe
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from tests.helpers import outputs


def network() -> nn.Module:
    """Return a network whose last layer sees little of what the first makes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip
    return model


def batches(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(count)]


def widths(model: nn.Module) -> dict[str, int]:
    return {
        name: each.weight_spec.bits
        for name, each in model.named_modules()
        if isinstance(each, QuantizedLayer)
    }


def average(model: nn.Module) -> float:
    layers = [each for each in model.modules() if isinstance(each, QuantizedLayer)]
    bits = sum(each.weight_integers.numel() * each.weight_spec.bits for each in layers)
    return bits / sum(each.weight_integers.numel() for each in layers)


def mixed(**options: object) -> nn.Module:
    recipe = Recipe.mixed(reconstruction=None, **options)  # type: ignore[arg-type]
    return fxquant.quantize(network(), batches(), recipe, progress=False)


def test_layers_get_bits_within_the_budget_and_lose_less_than_uniform_ones() -> None:
    quantized, x = mixed(average_bits=4.2, activation_bits=None), torch.cat(batches())
    assert average(quantized) <= 4.2
    assert len(set(widths(quantized).values())) > 1
    uniform = fxquant.quantize(
        network(),
        batches(),
        Recipe.adaround(weight_bits=4, activation_bits=None, reconstruction=None),
    )
    wanted = outputs(network(), x)
    assert sqnr(wanted, outputs(quantized, x)) > sqnr(wanted, outputs(uniform, x))


def test_activations_get_bits_too() -> None:
    recipe = Recipe.adaround(
        reconstruction=None,
        budget=Budget(max_bit_operations=1e6, activation_bits=(4, 8)),
    )
    quantized = fxquant.quantize(network(), batches(), recipe, progress=False)
    bits = [each.spec.bits for each in quantized.modules() if isinstance(each, FakeQuantize)]
    grids = [each.grid.steps for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert set(bits) <= {4, 8}
    assert 4 in bits
    assert grids == [2**each - 1 for each in bits]


def test_the_fewest_bits_that_keep_the_decisions() -> None:
    quantized = mixed(max_drop=5.0, activation_bits=None)
    model, x = network(), torch.cat(batches())
    same = (outputs(model, x).argmax(1) == outputs(quantized, x).argmax(1)).double().mean().item()
    assert average(quantized) < 7
    assert same > 0.8
    assert average(mixed(max_drop=40.0, activation_bits=None)) <= average(quantized)


def test_the_bits_stand_in_the_recipe_as_rules() -> None:
    quantized = mixed(average_bits=4.0)
    recipe = read_recipe(quantized)
    assert recipe is not None
    assert recipe.budget is None
    assert {rule.match: rule.weights for rule in recipe.rules} == widths(quantized)
    again, x = fxquant.quantize(network(), batches(), recipe), batches()[0]
    assert torch.equal(outputs(again, x), outputs(quantized, x))


def test_what_a_rule_says_stays() -> None:
    quantized = mixed(average_bits=5.0, rules=[Rule("0", weights=8)], skip=["5"])
    assert widths(quantized).keys() == {"0", "2"}
    assert widths(quantized)["0"] == 8


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.b(F.relu(self.a(x)) + y)
        return z


def test_models_of_several_inputs() -> None:
    model = Added()
    data = [{"x": torch.randn(32, 6), "y": torch.randn(32, 8)} for _ in range(4)]
    recipe = Recipe.mixed(average_bits=4, steps=5, samples=64)
    assert average(fxquant.quantize(model, data, recipe, progress=False)) <= 4


def test_one_layer_alone_gets_the_widest_that_fits() -> None:
    model, data = nn.Sequential(nn.Linear(6, 4)), [torch.randn(32, 6)]
    recipe = Recipe.mixed(average_bits=5.5, reconstruction=None)
    assert widths(fxquant.quantize(model, data, recipe)) == {"0": 5}


def test_says_the_least_that_would_do() -> None:
    with pytest.raises(RecipeError, match=r"max_bytes=100: the least that any .* is 1,3\d\d bytes"):
        mixed(max_bytes=100)
    with pytest.raises(RecipeError, match=r"average_bits=1.5: the least .* is 2 bits a weight"):
        mixed(average_bits=1.5)
    with pytest.raises(RecipeError, match=r"max_drop=0: with 2 bits a weight, the most that"):
        mixed(max_drop=0, weight_bits=(2,))
    with pytest.raises(RecipeError, match=r"max_drop=1.0: 1 batch of calibration data"):
        fxquant.quantize(network(), batches(1), Recipe.mixed(max_drop=1.0), progress=False)
    with pytest.raises(RecipeError, match="budget=3: give a Budget"):
        Recipe(budget=3)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="Budget: max_drop=-1: give a percentage below 100"):
        Recipe.mixed(max_drop=-1)
