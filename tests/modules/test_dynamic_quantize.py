"""Ranges computed from each batch at inference: no calibration, and the report's own setting."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.numerics.channel_ranges import batch_range
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net, graph_text

ACIQ = TensorSpec(range="aciq", dynamic=True)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("per_channel", [False, True])
def test_every_batch_has_its_own_range(per_channel: bool) -> None:
    torch.manual_seed(0)
    quantizer = DynamicQuantize(ACIQ, axis=-3 if per_channel else None)
    for size in (1.0, 1000.0):
        x = torch.randn(4, 3, 8, 8) * size
        y = quantizer(x)
        assert 30 < sqnr(x, y) < 60
        rows = y.movedim(1, 0).flatten(1) if per_channel else [y]
        assert all(len(row.unique()) <= 256 for row in rows)


def test_rounds_as_the_grid_over_the_batch_range_says() -> None:
    x = torch.tensor([[-1.0, 0.1, 0.4, 3.0]])
    quantizer = DynamicQuantize(TensorSpec(bits=2, range="minmax", dynamic=True))
    assert quantizer(x)[0].tolist() == pytest.approx([-4 / 3, 0, 0, 8 / 3])  # zero-point 1


def test_before_a_relu_it_rounds_what_the_relu_lets_through() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    y = DynamicQuantize(ACIQ, (0.0, math.inf))(x)
    assert y.min() == 0
    assert torch.equal(y.relu(), y)
    _, high = batch_range(x, ACIQ, (0.0, math.inf), None)
    assert y.max().item() == pytest.approx(high.item(), rel=1e-2)


def test_channels_without_positions_are_quantized_as_one() -> None:
    x = torch.randn(4, 3, 1, 1)
    one, other = DynamicQuantize(ACIQ, axis=-3), DynamicQuantize(ACIQ)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 4, 4), torch.zeros(0, 3), torch.ones(3).long()])
def test_zeros_nothing_and_integers_pass_unchanged(x: Tensor) -> None:
    assert torch.equal(DynamicQuantize(ACIQ)(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4).to(dtype)
    y = DynamicQuantize(ACIQ, axis=-3)(x)
    assert y.dtype == dtype
    assert sqnr(x.float(), y.float()) > 25


def test_a_model_converts_without_data_and_stands_before_its_relus() -> None:
    recipe = Recipe.aciq(activation_dynamic=True, bias_correction=False)
    quantized = fxquant.convert(fxquant.prepare(small_net(), recipe))
    assert graph_text(quantized).splitlines()[:6] == [
        "input_1 = input()",
        "quantizers_input_1 = self.quantizers.input_1(input_1) "
        "# DynamicQuantize 8 bits aciq/corrected of each batch",
        "_0 = self.0(quantizers_input_1) # QuantizedConv2d 8 bits minmax · folded: 1 · fused: _2",
        "quantizers__2 = self.quantizers._2(_0) "
        "# DynamicQuantize 8 bits aciq/corrected of each batch",
        "_2 = self.2(quantizers__2) # ReLU · fused into _0",
        "_3 = self.3(_2) # QuantizedConv2d 8 bits minmax",
    ]


@pytest.mark.parametrize("per_channel", [False, True])
def test_it_is_as_good_as_a_calibrated_range(per_channel: bool) -> None:
    model, x = small_net(), torch.randn(16, 3, 8, 8)
    quantized = fxquant.quantize(
        model, [x], Recipe.aciq(activation_dynamic=True, activation_per_channel=per_channel)
    )
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 33


def test_the_report_names_it() -> None:
    quantized = fxquant.quantize(
        small_net(), [torch.randn(4, 3, 8, 8)], Recipe.aciq(activation_dynamic=True), progress=False
    )
    rows = fxquant.report(quantized).rows
    assert [row.inputs for row in rows] == ["8 bits aciq/corrected"] * 3


def test_copies_and_pickles_compute_the_same() -> None:
    quantized = fxquant.convert(
        fxquant.prepare(
            small_net(), Recipe.aciq(activation_dynamic=True, activation_per_channel=True)
        )
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for copied in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
            assert torch.equal(copied(x), quantized(x))


def test_a_model_with_dynamic_ranges_is_converted_already() -> None:
    model = Net(lambda m, x: m.fc(x), fc=nn.Linear(4, 2))
    quantized = fxquant.convert(fxquant.prepare(model, Recipe.minmax(activation_dynamic=True)))
    with pytest.raises(fxquant.PassError, match="a converted model"):
        fxquant.convert(quantized)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_tensor_without_the_axis_of_channels_has_one_range(dynamic: bool) -> None:
    bias = torch.randn(8)
    model = Net(lambda m, x: m.conv(x * 2 + m.b), b=nn.Parameter(bias), conv=nn.Conv2d(3, 4, 1))
    x = torch.randn(4, 3, 8, 8)
    recipe = Recipe.minmax(activation_per_channel=True, activation_dynamic=dynamic)
    quantized = fxquant.quantize(model, [x], recipe, progress=False)
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 35
