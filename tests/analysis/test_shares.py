"""Shares of the change of the outputs add up, and go to what makes it."""

import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.analysis.shares import Shares, measure_shares
from fxquant.recipe.budget import Budget
from tests.helpers import outputs


def shares_of(model: nn.Module, recipe: Recipe, x: Tensor, bits: int) -> Shares:
    prepared = fxquant.prepare(model, recipe)
    fxquant.calibrate(prepared, [x])
    budget = Budget(average_bits=bits, weight_bits=(bits,), activation_bits=(bits,))
    return measure_shares(prepared, [(each,) for each in torch.split(x, 4)], budget, {}, len(x))


def test_of_one_linear_layer_the_share_is_the_whole_change() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(16, 6)
    recipe = Recipe.minmax(weight_bits=3, activation_bits=None)
    found = shares_of(model, recipe, x, 3)
    quantized = fxquant.quantize(model, [x], recipe)
    change = (outputs(quantized, x) - outputs(model, x)).square().sum().item() / 16
    share = found.of["0", "weights"]
    assert share.bits == 3
    assert share.cost is not None
    assert found.loss is not None
    assert abs(found.loss / change - 1) < 1e-4
    assert abs(share.cost / change - 1) < 1e-4
    assert abs(found.power / (outputs(model, x).square().sum().item() / 16) - 1) < 1e-5


def test_shares_of_a_deep_network_add_up_nearly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    x = torch.randn(64, 6)
    found = shares_of(model, Recipe.minmax(weight_bits=4, activation_bits=4), x, 4)
    total = sum(each.cost for each in found.of.values() if each.cost is not None)
    assert found.loss is not None
    assert abs(total / found.loss - 1) < 0.2
    assert len(found.of) == 6


def test_the_prepared_model_stays_as_it_is() -> None:
    model, x = (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        torch.randn(8, 6),
    )
    prepared = fxquant.prepare(model, Recipe.minmax())
    fxquant.calibrate(prepared, [x])
    before, wanted = fxquant.text(prepared), outputs(prepared, x)
    budget = Budget(average_bits=8, weight_bits=(8,), activation_bits=(8,))
    measure_shares(prepared, [(x,)], budget, {}, 8)
    assert fxquant.text(prepared) == before
    assert torch.equal(outputs(prepared, x), wanted)
    assert all(each.grad is None for each in prepared.parameters())


class Rows(nn.Module):
    """Gives as many rows as are above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y[y[:, 0] > 0]


def test_outputs_of_other_shapes_leave_shares_unknown() -> None:
    torch.manual_seed(0)
    found = shares_of(
        Rows(), Recipe.minmax(weight_bits=2, activation_bits=2), torch.randn(64, 6), 2
    )
    assert found.loss is None
    assert {each.cost for each in found.of.values()} == {None}
