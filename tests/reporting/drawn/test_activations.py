"""How what calls read is spread, as a page shows it."""

import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.reporting.drawn.activations import drawn_activations
from tests.helpers import Net


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def quantized(recipe: Recipe, model: nn.Module | None = None) -> nn.Module:
    batch = torch.randn(64, 8)
    return fxquant.quantize(model or network(), [batch], recipe, progress=False)


def test_activations_have_the_range_that_is_kept_and_say_what_is_clipped() -> None:
    model = quantized(Recipe.minmax())
    batch = 3 * torch.randn(512, 8)
    first, last = drawn_activations(model, batch)
    assert (first.name, first.side, first.bits) == ("0", "inputs", 8)
    assert first.low is not None
    assert first.high is not None
    assert first.edges[0] <= batch.min() < first.low < first.high < batch.max() <= first.edges[-1]
    outside = ((batch < first.low) | (batch > first.high)).float().mean().item()
    assert abs(first.clipped - outside) < 0.02
    assert last.low == 0  # behind the ReLU


def test_what_two_calls_read_is_shown_for_both_and_both_sides_of_a_sum() -> None:
    parts = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}
    model = quantized(Recipe.minmax(), Net(lambda m, x: m.a(x) + m.b(x), **parts))
    names = [each.name for each in drawn_activations(model, torch.randn(16, 8))]
    assert names[:2] == ["a", "b"]
    assert names[2:] == ["add"] * len(names[2:])


def test_ranges_that_follow_each_batch_are_left_out() -> None:
    model = quantized(Recipe.aciq(activation_dynamic=True))
    assert list(drawn_activations(model, torch.randn(16, 8))) == []


def test_the_model_is_left_as_it_was() -> None:
    model = quantized(Recipe.minmax())
    list(drawn_activations(model, torch.randn(16, 8)))
    assert not any(module._forward_pre_hooks for module in model.modules())
