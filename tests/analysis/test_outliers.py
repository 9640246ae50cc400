"""What makes a range wide is found, with what helps."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fxquant import Recipe
from fxquant.analysis.bench import Bench
from fxquant.analysis.outliers import Outlier, channel_peaks, outliers_of
from fxquant.analysis.ranking import drawn_calls, probes_of
from fxquant.diagnosis import bench_for


def found(model: nn.Module, x: Tensor, recipe: Recipe) -> list[Outlier]:
    bench: Bench = bench_for(model, [x, x], recipe)
    calls, _ = drawn_calls(bench, 64)
    return outliers_of(probes_of(bench), channel_peaks(bench.prepared, calls), recipe)


def test_a_wide_channel_of_an_input_is_for_smoothing() -> None:
    x = torch.randn(64, 16)
    x[:, 3] *= 50
    wide = found(nn.Sequential(nn.Linear(16, 4)), x, Recipe.minmax())[0]
    assert (wide.name, wide.side, wide.what) == ("0", "activations", "1 of 16 channels wide")
    assert wide.times > 20
    assert wide.advice == "smoothing=True"


def test_a_long_tail_is_for_a_range_that_clips() -> None:
    x = torch.randn(64, 64)
    x[0, 0] = 1000.0
    tails = [each for each in found(nn.Sequential(nn.Linear(64, 4)), x, Recipe.minmax())]
    assert any('range="mse" clips it;' in each.advice for each in tails)
    clipping = found(nn.Sequential(nn.Linear(64, 4)), x, Recipe.minmax(activation_range="mse"))
    assert any('activation_range="mse" clips it already' in each.advice for each in clipping)


def test_channels_of_weights_count_where_one_scale_serves_all() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16), torch.randn(64, 16)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight[2] *= 40
    recipe = Recipe.minmax()
    assert [each for each in found(model, x, recipe) if each.side == "weights"] == []
    assert recipe.weights is not None
    one_scale = replace(recipe, weights=replace(recipe.weights, per_channel=False))
    (wide,) = [each for each in found(model, x, one_scale) if each.side == "weights"]
    assert "weight_per_channel" in wide.advice


def test_a_weight_far_from_its_channels_counts_below_8_bits() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 4), torch.randn(8, 512)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight[0, 0] = 10.0
    assert [each for each in found(model, x, Recipe.minmax()) if each.side == "weights"] == []
    (far,) = [
        each for each in found(model, x, Recipe.minmax(weight_bits=4)) if each.side == "weights"
    ]
    assert far.times > 15


def test_nothing_stands_out_of_even_data() -> None:
    torch.manual_seed(0)
    assert found(nn.Sequential(nn.Linear(16, 4)), torch.randn(64, 16), Recipe.minmax()) == []
