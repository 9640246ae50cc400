"""Rankings of tensors are compared with what quantizing showed."""

import torch
from torch import nn

from benchmarks.judging.analyze_ranking import Truth, correlations, measure
from benchmarks.judging.analyze_remedies import measure as measure_remedies
from benchmarks.judging.analyzed import Subject
from fxquant import Recipe
from fxquant.analysis.ranking import TensorCost


def cost(own: float, alone: float, wins: float) -> TensorCost:
    return TensorCost(
        name="a", side="weights", bits=4, more_bits=8, own=own, alone=alone, share=None, wins=wins
    )


def test_what_ranks_as_the_truth_correlates_fully() -> None:
    costs = [cost(1.0, 10.0, 3.0), cost(2.0, 20.0, 2.0), cost(3.0, 30.0, 1.0), cost(0, 40.0, 0.5)]
    truth = [Truth(11.0, 9.0, 8.0), Truth(21.0, 6.0, 2.0), Truth(31.0, 3.0, 1.0), Truth(41.0, 0, 0)]
    rows = {row[0]: row[1:] for row in correlations(costs, truth)}
    assert rows["first order"] == ["1.00", "1.00", "1.00", "3 of 3"]
    assert rows["share of the change"] == ["1.00", "1.00", "1.00", "3 of 3"]
    assert rows["own dB"] == ["-0.20", "-0.20", "-0.20", "2 of 3"]


def test_a_small_network_is_ranked_and_its_remedies_are_applied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    recipe = Recipe.minmax(weight_bits=3, activation_bits=4)
    subject = Subject(model, recipe, torch.randn(64, 8), torch.randn(32, 8))
    count, _, rows = measure(subject)
    assert count == 4
    assert len(rows) == 4
    found, applied = measure_remedies(subject)
    assert applied[0][0] == "as it is"
    assert len(applied) == 1 + min(3, len(found.remedies))
