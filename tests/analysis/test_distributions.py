"""Histograms hold all values, before and after rounding."""

import torch
from torch import nn

from fxquant import Recipe
from fxquant.analysis.distributions import Distribution, distributions_of, own_losses
from fxquant.analysis.ranking import probes_of
from fxquant.diagnosis import bench_for


def found(recipe: Recipe) -> dict[str, Distribution]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    bench = bench_for(model, [torch.randn(32, 8) for _ in range(2)], recipe)
    return {f"{each.name} {each.side}": each for each in distributions_of(probes_of(bench))}


def test_weights_are_counted_and_rounded_to_as_many_values_as_bits_allow() -> None:
    weights = found(Recipe.minmax(weight_bits=2))["0 weights"]
    assert len(weights.edges) == len(weights.counts) + 1
    assert sum(weights.counts) == sum(weights.rounded) == 128
    assert weights.bits == 2
    assert weights.low <= weights.edges[0]
    assert weights.own is not None


def test_activations_are_shares_and_fall_into_as_many_bins_as_steps() -> None:
    inputs = found(Recipe.minmax(activation_bits=3))["2 activations"]
    assert abs(sum(inputs.counts) - 1) < 1e-9
    assert abs(sum(inputs.rounded) - 1) < 1e-9
    assert sum(share > 0 for share in inputs.rounded) <= 8
    assert inputs.edges[0] == 0.0
    clipped = found(Recipe.minmax(activation_bits=3, activation_range="mse"))["2 activations"]
    assert clipped.high < inputs.high


def test_ranges_of_each_batch_have_no_histogram() -> None:
    kinds = {each.side for each in found(Recipe.minmax(activation_dynamic=True)).values()}
    assert kinds == {"weights"}


def test_own_losses_are_by_name_and_side() -> None:
    known = found(Recipe.minmax()).values()
    assert set(own_losses(known)) == {(each.name, each.side) for each in known}
