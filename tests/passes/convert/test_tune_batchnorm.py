"""TuneBatchNorm gives quantized channels the float network's means and deviations."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes import QuantizeWeights, TuneBatchNorm
from tests.helpers import Net, apply, outputs

BATCHES = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 3, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(225, 5),
    )


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(8, 3, 9, 9, generator=generator) for _ in range(BATCHES)]


def tuned(
    model: nn.Module, bits: int = 2, **options: Any
) -> tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule]:
    """Return the float graph, the rounded one, and that one tuned."""
    reference = fxquant.trace(model)
    recipe = Recipe.minmax(weight_bits=bits, activation_bits=None)
    rounded = copy.deepcopy(reference)
    apply(QuantizeWeights(recipe), rounded)
    gm = copy.deepcopy(rounded)
    assert apply(TuneBatchNorm(reference, [(each,) for each in batches()], **options), gm)
    return reference, rounded, gm


def layer_of(gm: nn.Module, name: str) -> QuantizedLayer:
    layer = gm.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    return layer


def moments(gm: fx.GraphModule, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each output channel of a layer, over all batches."""
    found: list[Tensor] = []
    layer = gm.get_submodule(name)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    hook = layer.register_forward_hook(
        lambda _, __, y: found.append(y.detach().movedim(axis, 0).flatten(1).double())
    )
    for batch in batches():
        outputs(gm, batch)
    hook.remove()
    values = torch.cat(found, dim=1)
    return values.mean(1), values.std(1, correction=0)


@pytest.mark.parametrize("name", ["0", "2", "4", "7"])
def test_every_layer_gets_the_float_means_and_deviations(name: str) -> None:
    reference, rounded, gm = tuned(network())
    wanted, before, after = (moments(each, name) for each in (reference, rounded, gm))
    assert not torch.allclose(before[0], wanted[0], rtol=1e-2)
    for found, target in zip(after, wanted, strict=True):
        torch.testing.assert_close(found, target, rtol=1e-3, atol=1e-5)


def test_integers_stay_and_the_error_falls() -> None:
    model = network()
    _, rounded, gm = tuned(model)
    for name, layer in rounded.named_modules():
        if isinstance(layer, QuantizedLayer):
            assert torch.equal(layer_of(gm, name).weight_integers, layer.weight_integers)
    x = torch.rand(32, 3, 9, 9)
    errors = [(outputs(each, x) - outputs(model, x)).square().mean() for each in (rounded, gm)]
    assert errors[1] < 0.7 * errors[0]


def test_one_scale_for_all_channels_stays_one_and_means_are_tuned() -> None:
    reference = fxquant.trace(network())
    gm = copy.deepcopy(reference)
    weights = fxquant.TensorSpec(bits=3, symmetric=True)
    apply(QuantizeWeights(Recipe(weights=weights, activations=None)), gm)
    scale = layer_of(gm, "0").weight_scale.clone()
    apply(TuneBatchNorm(reference, [(each,) for each in batches()]), gm)
    assert torch.equal(layer_of(gm, "0").weight_scale, scale)
    torch.testing.assert_close(moments(gm, "0")[0], moments(reference, "0")[0])


def test_a_channel_that_quantization_erased_keeps_its_scale() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    reference = fxquant.trace(model)
    gm = copy.deepcopy(reference)
    apply(QuantizeWeights(Recipe.minmax(activation_bits=None)), gm)
    layer = layer_of(gm, "0")
    layer.weight_integers[0] = 0
    scale = layer.weight_scale.clone()
    apply(TuneBatchNorm(reference, [(each,) for each in batches()]), gm)
    assert layer.weight_scale[0] == scale[0]
    torch.testing.assert_close(moments(gm, "0")[0], moments(reference, "0")[0])


def test_a_shared_layer_is_tuned_on_all_its_calls() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    reference, _, gm = tuned(nn.Sequential(conv, nn.ReLU(), conv), bits=3)
    for found, target in zip(moments(gm, "0"), moments(reference, "0"), strict=True):
        torch.testing.assert_close(found, target, rtol=0.1, atol=1e-2)


def test_the_recipe_tunes_and_accuracy_at_2_bits_rises() -> None:
    model, x = network(), torch.rand(32, 3, 9, 9)
    errors = []
    for tuning in (False, True):
        recipe = Recipe.minmax(weight_bits=2, activation_bits=8, batchnorm_tuning=tuning)
        quantized = fxquant.quantize(model, batches(), recipe, progress=False)
        errors.append((outputs(quantized, x) - outputs(model, x)).square().mean())
    assert errors[1] < 0.7 * errors[0]


def test_says_what_is_wrong_before_any_work() -> None:
    reference, rounded, _ = tuned(network())
    with pytest.raises(CalibrationError, match="`batches` is empty"):
        TuneBatchNorm(reference, [])(rounded)
    other = fxquant.trace(nn.Sequential(nn.ReLU()))
    with pytest.raises(PassError, match="TuneBatchNorm: the reference has no node"):
        TuneBatchNorm(other, [(torch.rand(1, 3, 9, 9),)])(rounded)
    with pytest.raises(CalibrationError, match="0: NaN or infinity in its output"):
        TuneBatchNorm(reference, [(torch.full((1, 3, 9, 9), torch.nan),)])(rounded)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(6, 3), (6,)),
        (nn.Linear(6, 3), (4, 6)),
        (nn.Conv1d(3, 5, 3), (3, 8)),
        (nn.ConvTranspose2d(3, 5, 3), (3, 6, 6)),
    ],
    ids=["a vector", "rows", "a signal", "an image"],
)
def test_inputs_may_be_samples_without_a_batch(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data = [torch.randn(shape) for _ in range(16)]
    recipe = Recipe.minmax(weight_bits=3, activation_bits=None, batchnorm_tuning=True)
    quantized = fxquant.quantize(nn.Sequential(model), data, recipe)
    axis = -1 if isinstance(model, nn.Linear) else -len(shape)
    with torch.no_grad():
        ours, floats = (
            torch.stack([each(x) for x in data]).movedim(axis, 0).flatten(1).mean(1)
            for each in (quantized, nn.Sequential(model))
        )
    torch.testing.assert_close(ours, floats)


def test_leaves_a_layer_behind_a_change_through_a_view_as_it_is() -> None:
    def zeroed(m: Any, x: Tensor) -> Any:
        row = x[:, :1]
        F.relu_(x)
        return m.fc(row)

    torch.manual_seed(0)
    model, x = Net(zeroed, fc=nn.Linear(8, 4)), torch.randn(16, 4, 8) - 1
    recipe = Recipe.minmax(batchnorm_tuning=True)
    quantized = fxquant.quantize(model, [x.clone()], recipe, progress=False)
    assert sqnr(model(x.clone()), quantized(x.clone())) > 35
