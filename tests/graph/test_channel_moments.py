"""Ranges without data: where batch norms say what the values are."""

import math

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.graph.channel_moments import channel_moments_of, range_of, rectified
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.decibels import sqnr
from fxquant.passes import FoldBatchNorm
from tests.helpers import Net, node, whole


def test_a_rectified_gaussian_has_the_moments_of_its_samples() -> None:
    torch.manual_seed(0)
    mean, sigma = torch.tensor([-2.0, 0.0, 1.5, 5.0]), torch.tensor([1.0, 2.0, 0.5, 4.0])
    samples = torch.randn(400_000, 4) * sigma + mean
    for bounds in ((0.0, math.inf), (0.0, 6.0)):
        behind = samples.clamp(*bounds)
        found_mean, found_sigma = rectified((mean, sigma), bounds)
        torch.testing.assert_close(found_mean, behind.mean(0), rtol=0.02, atol=0.01)
        torch.testing.assert_close(found_sigma, behind.std(0), rtol=0.02, atol=0.01)


def test_the_range_is_six_sigma_around_the_mean_of_every_channel() -> None:
    moments = (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    low, high = range_of(moments, None, per_channel=False)
    assert (low.item(), high.item()) == (-11, 13)
    low, high = range_of(moments, (0.0, 6.0), per_channel=True)
    assert (low.tolist(), high.tolist()) == ([0, 0], [6, 6])


def test_moments_travel_through_relu_addition_pooling_and_concatenation() -> None:
    bn, pool, down = nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Conv2d(3, 2, 4, 2)
    model = Net(
        lambda m, x: torch.cat([m.pool(m.bn(m.conv(x)).relu()), m.down(x).sigmoid()], 1),
        conv=nn.Conv2d(3, 2, 3), bn=bn, pool=pool, down=down,
    )  # fmt: skip
    gm = fxquant.trace(model)
    FoldBatchNorm()(gm)
    moments = channel_moments_of(gm)
    assert {each.name for each in moments} == {"conv", "relu", "pool"}
    torch.testing.assert_close(moments[node(gm, "conv")][0], bn.bias.detach())

    joined = Net(
        lambda m, x: torch.cat([m.bn(m.conv(x)) + m.bn(m.conv(x)), m.bn(m.conv(x))], 1),
        conv=nn.Conv2d(3, 2, 3), bn=bn,
    )  # fmt: skip
    gm = fxquant.trace(joined)
    moments = channel_moments_of(gm)
    mean, sigma = moments[node(gm, "add")]
    torch.testing.assert_close(mean, 2 * bn.bias.detach())
    torch.testing.assert_close(sigma, math.sqrt(2) * moments[node(gm, "bn")][1])
    assert moments[node(gm, "cat")][0].shape == (4,)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def fit_statistics(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(100):
            model.train()(x)
    model.eval()


def test_a_model_converts_without_a_single_batch() -> None:
    model, x = make_net(), torch.randn(16, 3, 12, 12)
    fit_statistics(model, x)
    quantized = fxquant.convert(fxquant.prepare(model, Recipe.aciq(activation_range="bn")))
    quantizers = [each for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert len(quantizers) == 2  # the input of the model stays in float: nothing tells its range
    with torch.no_grad():
        assert sqnr(model(x), quantized(x)) > 30


def test_where_no_batchnorm_helps_calibration_does() -> None:
    model, x = make_net(), torch.randn(16, 3, 12, 12)
    fit_statistics(model, x)
    prepared = fxquant.prepare(model, Recipe.aciq(activation_range="bn"))
    fxquant.calibrate(prepared, [x], progress=False)
    quantized = fxquant.convert(prepared)
    quantizers = [each for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert len(quantizers) == 3


def test_what_no_batchnorm_tells_is_listed_as_float() -> None:
    quantized = whole(
        fxquant.convert(fxquant.prepare(make_net(), Recipe.aciq(activation_range="bn")))
    )
    assert "input_1 = input()" in fxquant.text(quantized)
    assert "left in float: no floating-point value seen" in fxquant.text(quantized)


@pytest.mark.parametrize("per_channel", [False, True])
def test_unfolded_batchnorms_tell_too(per_channel: bool) -> None:
    model = Net(
        lambda m, x: m.head(m.bn(torch.cat([m.a(x), m.b(x)], 1)).relu()),
        a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1), bn=nn.BatchNorm2d(4), head=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    recipe = Recipe.aciq(activation_range="bn", activation_per_channel=per_channel)
    quantized = fxquant.convert(fxquant.prepare(model, recipe))
    (quantizer,) = [each for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert quantizer.scale.shape == ((4,) if per_channel else ())
