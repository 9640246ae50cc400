"""A study tries changes one by one, and keeps what helps apart from what does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.analysis.judge import Judge
from fxquant.analysis.study import Data, Study
from fxquant.diagnosis import bench_for

RECIPE = Recipe.minmax(weight_bits=3, activation_bits=4)


@pytest.fixture(scope="module")
def found() -> fxquant.Analysis:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    data = [torch.randn(16, 8) for _ in range(8)]
    steps: Iterator[Any] = iter(range(1000))
    study = Study(
        bench_for(model, data[2:], RECIPE), Judge(model, data[:2], None, None), RECIPE, steps
    )
    analysis = study.analysis(Data(128, 32, True, 1.0, 0.0, 0.0), 32)
    assert 15 < next(steps) < 30
    return analysis


def test_the_first_tensors_were_tried_one_by_one_and_lead(found: fxquant.Analysis) -> None:
    measured = [each.measured for each in found.costs]
    tried = [each for each in measured if each is not None]
    assert 3 <= len(tried) < len(measured)
    assert measured[: len(tried)] == tried
    won = [each.decibels or 0.0 for each in tried]
    assert won == sorted(won, reverse=True)
    assert [each.place for each in found.costs] == [*range(1, len(measured) + 1)]


def test_what_helped_and_what_did_not_is_everything_that_was_tried(
    found: fxquant.Analysis,
) -> None:
    said = {each.change.title for each in (*found.remedies, *found.in_vain)}
    assert {"biases corrected", "roundings learned on Gram matrices"} <= said
    assert any(title.startswith("8 bits for these 3: ") for title in said)
    assert f"8 bits for {found.costs[0].label}" in said


def test_several_together_lead_only_where_they_win_more(found: fxquant.Analysis) -> None:
    joined = [each for each in found.remedies if "; " in each.change.title]
    assert joined == [each for each in found.remedies[:1] if "; " in each.change.title]


def test_remedies_are_recipes_with_the_caller_s_bits(found: fxquant.Analysis) -> None:
    for remedy in found.remedies:
        assert remedy.recipe == remedy.change.applied_to(RECIPE)
