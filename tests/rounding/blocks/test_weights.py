"""Integers, scales and biases of a block's layer that are free."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, Reconstruction, TensorSpec
from fxquant.modules.layers import as_layer, num_outputs
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import QuantizeWeights
from fxquant.rounding.blocks.weights import FreeWeight
from tests.helpers import apply, whole


def sizes(layer: QuantizedLayer, size: float) -> Tensor:
    return torch.full((num_outputs(as_layer(layer)),), size)


def free(
    model: nn.Module, spec: TensorSpec | None = None, size: float = 1.0
) -> tuple[FreeWeight, QuantizedLayer]:
    gm = fxquant.trace(nn.Sequential(model))
    reference = copy.deepcopy(gm)
    recipe = Recipe(weights=spec or TensorSpec(bits=3, per_channel=True), activations=None)
    apply(QuantizeWeights(recipe), gm)
    layer = gm.get_submodule("0")
    assert isinstance(layer, QuantizedLayer)
    return FreeWeight(layer, as_layer(reference.get_submodule("0")), sizes(layer, size)), layer


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_it_starts_where_the_layer_is(symmetric: bool, per_channel: bool) -> None:
    spec = TensorSpec(bits=3, symmetric=symmetric, per_channel=per_channel)
    weight, layer = free(nn.ConvTranspose2d(4, 6, 3, groups=2), spec)
    start = weight.result()
    assert torch.equal(start.integers, layer.weight_integers)
    assert torch.equal(start.scale, layer.weight_scale)
    torch.testing.assert_close(start.weight, layer.weight)
    torch.testing.assert_close(weight.weight().detach(), layer.weight)
    torch.testing.assert_close(weight.bias().detach(), layer.bias_values())


def test_it_goes_on_from_the_integers_that_an_earlier_pass_left() -> None:
    spec = TensorSpec(bits=3, per_channel=True, symmetric=True)
    _, layer = free(nn.Linear(3, 2), spec)
    reference = nn.Linear(3, 2)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor([[1.2, -0.3, 2.0], [9.0, -9.0, 0.5]]))
    layer.weight_scale.fill_(1.0)
    layer.weight_integers.copy_(torch.tensor([[1, 1, -4], [3, -4, 1]], dtype=torch.int8))
    layer.set_bias(torch.tensor([5.0, 6.0]))
    weight = FreeWeight(layer, reference, sizes(layer, 1.0))
    (v, _), *_ = weight.variables()
    expected = torch.tensor([[1.2, 0.55, -3.55], [3.45, -4.45, 0.55]])
    torch.testing.assert_close(v.detach(), expected)
    start = weight.result()
    assert torch.equal(start.integers, layer.weight_integers)
    assert torch.equal(weight.before, layer.weight)
    assert weight.bias().tolist() == [5.0, 6.0]


def test_gradients_go_straight_through_within_the_grid() -> None:
    weight, layer = free(nn.Linear(3, 1), size=2.0)
    (v, _), (growth, _), (shift, _) = weight.variables()
    with torch.no_grad():
        v.copy_(torch.tensor([[-9.0, 0.4, 3.0]]))  # the grid goes from -4 to 3
    total = (weight.weight() * torch.tensor([1.0, 10.0, 100.0])).sum() + weight.bias().sum()
    by_v, by_growth, by_shift = torch.autograd.grad(total, (v, growth, shift))
    step = layer.weight_scale
    torch.testing.assert_close(by_v, torch.tensor([[0.0, 10.0, 100.0]]) * step)
    torch.testing.assert_close(by_growth, torch.tensor([-4.0 + 0 + 300]) * step)
    torch.testing.assert_close(by_shift, torch.tensor([2.0]))


def test_integers_scales_and_biases_move_and_stay_on_the_grid() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    x = torch.rand(256, 8)
    recipe = Recipe.adaround(weight_bits=3, activation_bits=None)
    options = Reconstruction(blocks=True, method="adaquant", steps=300, drop=0.0)
    nearest, learned = (
        whole(fxquant.quantize(model, [x], Recipe(
            weights=recipe.weights, activations=recipe.activations, reconstruction=each
        ), progress=False))
        for each in (None, options)
    )  # fmt: skip
    with torch.no_grad():
        before, after = ((gm(x) - model(x)).square().sum() for gm in (nearest, learned))
    assert after < 0.5 * before
    for name in ("0", "2"):
        one, other = (gm.get_submodule(name) for gm in (nearest, learned))
        assert isinstance(one, QuantizedLayer)
        assert isinstance(other, QuantizedLayer)
        assert other.weight_integers.abs().max() <= 4
        assert not torch.equal(one.weight_scale, other.weight_scale)
        assert not torch.equal(one.bias_values(), other.bias_values())
        assert other.rounding is not None
        assert other.rounding.method == "blocks, AdaQuant"


def test_free_blocks_go_on_from_layers_by_the_gram_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.rand(256, 8)
    layers = Recipe.adaround(weight_bits=2, activation_bits=None, method="gram")
    blocks = Recipe.adaround(
        weight_bits=2, activation_bits=None, method="adaquant", blocks=True, steps=1
    )
    solved, learned = (
        whole(fxquant.quantize(model, [x], each, progress=False)) for each in (layers, blocks)
    )
    for name in ("0", "2"):
        one, other = solved.get_submodule(name), learned.get_submodule(name)
        assert isinstance(one, QuantizedLayer)
        assert isinstance(other, QuantizedLayer)
        assert (one.weight_integers == other.weight_integers).float().mean() > 0.9
    first, second = (
        whole(fxquant.quantize(model, [x], blocks, checkpoint=tmp_path / "run", progress=False))
        for _ in range(2)
    )
    assert torch.equal(first(x), learned(x))
    assert torch.equal(second(x), learned(x))
    assert (tmp_path / "run" / "_start").is_dir()
