"""What two models quantize in different ways."""

import pytest
import torch
from torch import nn

import fxquant
from fxquant import PassError, Recipe, Rule
from fxquant.reporting.changes import changes


def model(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return fxquant.quantize(net, [torch.randn(16, 8)], recipe)


def test_the_same_model_twice_differs_nowhere() -> None:
    found = changes(model(Recipe.aciq()), model(Recipe.aciq()))
    assert found.rows == ()
    assert found.heads()[0] == "0 of 3 calls are quantized in another way"


def test_only_what_differs_is_listed() -> None:
    mixed = Recipe.aciq(rules=[Rule("2", weights=4)])
    found = changes(model(Recipe.aciq()), model(mixed))
    (record,) = found.tables()[0].records()
    assert record["name"] == "2"
    assert (record["first_weights"], record["second_weights"]) == ("8 bits minmax", "4 bits minmax")
    assert record["first_weight_db"] - record["second_weight_db"] > 15  # type: ignore[operator]
    assert found.badness()[0] > 15  # type: ignore[operator]
    assert found.heads()[1].startswith("A: Recipe")
    assert "→ weights" in str(found)


def test_a_call_that_one_has_not_is_listed() -> None:
    torch.manual_seed(0)
    longer = fxquant.quantize(nn.Sequential(nn.Linear(8, 8)), [torch.randn(16, 8)])
    found = changes(model(Recipe.aciq()), longer)
    records = {record["name"]: record for record in found.tables()[0].records()}
    assert records["4"]["second_weights"] == "not there"


def test_float_models_are_refused() -> None:
    with pytest.raises(PassError, match="got a Linear"):
        changes(nn.Linear(2, 2), nn.Linear(2, 2))
