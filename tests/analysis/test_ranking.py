"""Tensors are ranked by what they cost the outputs, and rules speak of the right calls."""

import pytest
import torch
from torch import nn

from fxquant import Recipe, Rule
from fxquant.analysis.ranking import TensorCost, more_bits, rank, rules_for
from fxquant.diagnosis import bench_for


def cost(name: str, side: str, bits: int = 4, **facts: object) -> TensorCost:
    known = {"own": None, "alone": None, "share": None, "wins": None, **facts}
    more = more_bits(side, bits)  # type: ignore[arg-type]
    return TensorCost(name=name, side=side, bits=bits, more_bits=more, **known)  # type: ignore[arg-type]


def test_an_error_that_the_next_layer_multiplies_costs_more_than_a_larger_one_at_the_end() -> None:
    torch.manual_seed(0)
    last = nn.Linear(16, 16)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), last)
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.weight[0] *= 1e4
    rules = [Rule("0", weights=4), Rule("2", weights=8)]
    bench = bench_for(model, [torch.randn(32, 16)], Recipe.minmax(rules=rules))
    costs = rank(bench, 32, {}).costs
    assert (costs[0].name, costs[0].side) == ("0", "weights")
    assert [each.more_bits for each in costs if each.bits == 8] == [None, None, None]
    assert costs[0].num_weights == 256


def test_as_many_samples_run_as_are_asked_for_evenly_from_all() -> None:
    model, data = nn.Sequential(nn.Linear(4, 4)), [torch.randn(16, 4) for _ in range(4)]
    bench = bench_for(model, data, Recipe.minmax())
    assert rank(bench, 20, {}).num_samples == 20
    assert rank(bench, 1000, {}).num_samples == 64


def test_rules_raise_all_readers_and_join_both_sides_of_a_call() -> None:
    shared = cost("a", "activations", readers=("a", "b[0]"))
    rules = rules_for([shared, cost("a", "weights", 3)], [], Recipe.minmax())
    assert rules == (Rule("a", weights=8, activations=8), Rule("b[[]0]", activations=8))


@pytest.mark.parametrize("recipe", [Recipe.minmax(end_bits=8), Recipe.minmax()])
def test_a_rule_says_both_sides_where_ends_have_bits_of_their_own(recipe: Recipe) -> None:
    chosen, other = cost("stem", "weights", 4), cost("stem", "activations", 6)
    (rule,) = rules_for([chosen], [chosen, other], recipe)
    assert rule.weights == 8
    assert rule.activations == (6 if recipe.end_bits else "inherit")


def test_more_bits_are_8_and_of_8_float() -> None:
    assert [more_bits("weights", bits) for bits in (2, 7, 8)] == [8, 8, None]
    assert cost("a", "weights", 4, num_weights=100).more_bytes == 50
    assert cost("a", "weights", 8, num_weights=100).more_bytes == 300
