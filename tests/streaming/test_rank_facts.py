"""What ranks compare: all that a result depends on, and nothing else."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import fxquant
from fxquant import Recipe, Rule
from fxquant.streaming.rank_facts import (
    facts_of_graphs,
    facts_of_model,
    facts_of_recipe,
    take_first_ranks,
)
from tests.processes import ranks


def test_a_recipe_is_told_field_by_field() -> None:
    recipe = Recipe.adaround(steps=7, rules=[Rule("fc", weights=8)], target="tensorrt")
    facts = facts_of_recipe(recipe)
    assert facts["recipe.weights.bits"] == "4"
    assert facts["recipe.reconstruction.steps"] == "7"
    assert facts["recipe.rules[0].match"] == "'fc'"
    assert facts["recipe.target.name"] == "'tensorrt'"
    assert recipe.reconstruction is not None
    for one, other in ((recipe.reconstruction.max_bytes, 1), (1, 1 << 40)):
        options = [replace(recipe.reconstruction, max_bytes=each) for each in (one, other)]
        same = [facts_of_recipe(replace(recipe, reconstruction=each)) for each in options]
        assert same[0] == same[1] == facts  # how much waits in memory changes no result


def test_a_model_is_told_by_its_modules_and_by_what_is_in_its_tensors() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    facts = facts_of_model(model)
    assert facts["model.0"] == "Linear(in_features=2, out_features=3, bias=True)"
    assert facts["model.0.weight"].startswith("float32 (3, 2) with the digest ")
    model[1].get_buffer("running_mean")[1] += 1e-7
    changed = {key for key, each in facts_of_model(model).items() if each != facts[key]}
    assert changed == {"model.1.running_mean"}


def test_addresses_are_no_facts() -> None:
    class Calls(nn.Module):
        def extra_repr(self) -> str:
            return f"{object()}"

    assert facts_of_model(Calls()) == {"model": "Calls(<object object>)"}


def test_tensors_without_values_are_told_so() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1, 1), nn.LazyLinear(1))
    facts = facts_of_model(model)
    assert [facts[f"model.{number}.weight"] for number in (0, 1)] == ["without values"] * 2


def test_what_a_rank_has_observed_is_its_own() -> None:
    prepared = fxquant.prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), Recipe.adaround())
    before = facts_of_model(prepared), facts_of_graphs(prepared)
    prepared(torch.randn(3, 4))
    assert (facts_of_model(prepared), facts_of_graphs(prepared)) == before
    assert before[1]["line 4 of the graph"] == "_0 = self.0(observers_input_1)"


def test_all_take_rank_0s_tensors_where_they_differ(tmp_path: Path) -> None:
    def taken(rank: int) -> list[float]:
        model = nn.Linear(2, 1, bias=rank < 2)
        model.weight.data = torch.ones(1, 4)[:, ::2]  # whose values lie apart
        with torch.no_grad():
            for each in model.parameters():
                each.fill_(1 + rank * 1e-7)
        take_first_ranks(model)
        return [value for each in model.parameters() for value in each.flatten().tolist()]

    assert ranks(2, taken, tmp_path) == [[1.0, 1.0, 1.0]] * 2
    for error in ranks(3, taken, tmp_path):
        assert error == (
            "RankError: the quantized model: the ranks do not have the same to work on: bias is "
            "float32 (1,) on rank 0 and 1, missing on rank 2: give all of them the same model, "
            "recipe and example_inputs"
        )
