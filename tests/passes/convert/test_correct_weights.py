"""The report's I.F: each channel of a rounded weight gets its mean and norm back."""

import copy

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import PassError, Recipe
from fxquant.modules.layers import output_rows
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import CorrectWeights, QuantizeWeights
from fxquant.passes.convert.correct_weights import gain_and_shift
from tests.helpers import Net, apply

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (2, 6)),
    "conv": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
}


def corrected(layer: nn.Module, bits: int = 3) -> tuple[QuantizedLayer, Tensor]:
    gm = fxquant.trace(Net(lambda m, x: m.layer(x), layer=layer))
    reference = copy.deepcopy(gm)
    QuantizeWeights(Recipe.minmax(weight_bits=bits))(gm)
    assert apply(CorrectWeights(reference), gm)
    assert not apply(CorrectWeights(reference), gm)
    quantized = gm.get_submodule("layer")
    assert isinstance(quantized, QuantizedLayer)
    return quantized, reference.get_parameter("layer.weight").detach()


@pytest.mark.parametrize("name", LAYERS)
def test_mean_and_norm_of_each_channel_are_the_float_ones(name: str) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name][0])
    quantized, weight = corrected(layer)
    rows = output_rows(quantized, weight)  # type: ignore[arg-type]
    found = output_rows(quantized, quantized.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(found.mean(1), rows.mean(1))
    torch.testing.assert_close(found.std(1), rows.std(1))


def test_gain_and_shift_by_hand() -> None:
    gain, shift = gain_and_shift(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    assert gain.item() == pytest.approx(2.0)  # (±1) over (±0.5)
    assert shift.item() == pytest.approx(2.0 - 2.0 * 0.5)


def test_a_channel_that_rounding_made_constant_gets_its_mean() -> None:
    gain, shift = gain_and_shift(torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 4.0]]))
    assert gain.item() == 1
    assert shift.item() == -2


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_computes_with_the_corrected_weight(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    quantized, _ = corrected(copy.deepcopy(layer))
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(quantized.weight)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), plain(x))


def test_the_recipe_runs_it_and_the_text_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(8, 3, 8, 8)
    recipe = Recipe.aciq(weight_bits=3, bias_correction="weights")
    quantized = fxquant.quantize(model, [x], recipe, progress=False)
    assert fxquant.text(quantized).count("moments corrected") == 2
    again = copy.deepcopy(quantized)
    again.load_state_dict(quantized.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), quantized(x))


def test_a_layer_that_the_reference_lacks_is_named() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Linear(2, 2)))
    other = fxquant.trace(Net(lambda m, x: m.fc(x), fc=nn.Linear(2, 2)))
    QuantizeWeights(Recipe.minmax())(gm)
    with pytest.raises(PassError, match="CorrectWeights: the reference has no module '0'"):
        CorrectWeights(other)(gm)
