"""How often each integer stands in a weight."""

import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.reporting.drawn.weights import drawn_weights


def quantized(model: nn.Module, recipe: Recipe) -> nn.Module:
    return fxquant.quantize(model, [torch.randn(64, 8)], recipe, progress=False)


def test_each_integer_of_a_weight_is_counted() -> None:
    model = quantized(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), Recipe.minmax(weight_bits=4)
    )
    first, last = drawn_weights(model)
    assert (first.name, last.name) == ("0", "2")
    assert (first.bits, len(first.counts), sum(first.counts)) == (4, 16, 128)
    assert (first.edges[0], first.edges[-1]) == (-8.5, 7.5)
    layer = model.get_submodule("0")
    assert isinstance(layer, QuantizedLayer)
    assert first.counts[8] == int((layer.weight_integers == 0).sum())


def test_of_large_weights_some_stand_for_all() -> None:
    model = quantized(nn.Linear(8, 1 << 17), Recipe.minmax())
    (histogram,) = drawn_weights(model)
    assert (1 << 16) < sum(histogram.counts) <= 1 << 18
