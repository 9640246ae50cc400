"""Ranges of single channels, from calibration and from a batch."""

import math
from dataclasses import replace

import pytest
import torch

from fxquant import TensorSpec
from fxquant.numerics.channel_ranges import (
    ChannelStatistics,
    batch_range,
    channel_moments,
    channel_range,
)
from fxquant.numerics.closed_clips import gauss_constant, laplace_constant

ACIQ = TensorSpec(range="aciq", clip="report", distribution="laplace")


def laplace(*shape: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.distributions.Laplace(0.0, 1.0).sample(shape)


def test_moments_are_those_of_each_channel() -> None:
    x = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[5.0, 7.0], [-2.0, 2.0]]])  # (2, 2, 2)
    low, high, mean, deviation, square = channel_moments(x, -2)
    assert low.tolist() == [1, -2]
    assert high.tolist() == [7, 2]
    assert mean.tolist() == [4, 0]
    assert deviation.tolist() == [2, 1]
    assert square.tolist() == [5, 2]


def test_moments_without_an_axis_are_those_of_the_tensor() -> None:
    x = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    assert [moment.item() for moment in channel_moments(x, None)] == [0, 4, 2, 1.5, 2.5]


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.full((4, 1, 64, 64), 100.0, dtype=torch.float16)
    assert channel_moments(x, -3)[2].tolist() == [100.0]


def test_a_batch_is_clipped_by_its_own_moments() -> None:
    x = laplace(8, 2, 100, 100) * torch.tensor([1.0, 10.0])[:, None, None]
    low, high = batch_range(x, ACIQ, None, -3)
    for channel, b in enumerate((1.0, 10.0)):
        expected = laplace_constant(8) * b
        assert high[channel].item() == pytest.approx(expected, rel=0.03)
        assert low[channel].item() == pytest.approx(-expected, rel=0.03)


def test_no_clip_is_wider_than_what_was_seen() -> None:
    x = torch.rand(4, 3, 8, 8)
    low, high = batch_range(x, ACIQ, None, -3)
    assert torch.equal(high, x.amax((0, 2, 3)))
    assert torch.equal(low, x.amin((0, 2, 3)))


def test_behind_a_relu_the_range_starts_at_zero() -> None:
    four_bits = replace(ACIQ, bits=4)
    low, high = batch_range(laplace(8, 2, 64, 64), four_bits, (0.0, math.inf), -3)
    assert low.tolist() == [0, 0]
    expected = laplace_constant(5)  # c_F(M) = c(M + 1), report, Table II
    assert high.tolist() == pytest.approx([expected, expected], rel=0.05)
    _, high = batch_range(laplace(8, 2, 64, 64) * 3, ACIQ, (0.0, 6.0), -3)
    assert high.tolist() == [6, 6]


def test_auto_clips_a_batch_for_laplace_unless_that_errs_more_than_no_clip() -> None:
    def clip(x: torch.Tensor, distribution: str, axis: int | None = None) -> torch.Tensor:
        spec = TensorSpec(bits=3, range="aciq", distribution=distribution)  # type: ignore[arg-type]
        return batch_range(x, spec, None, axis)[1]

    torch.manual_seed(0)
    heavy = laplace(100_000)
    rare = torch.where(torch.rand(100_000) < 0.1, 1.0, 0.0) * torch.randn(100_000).sign()
    assert clip(heavy, "auto") == clip(heavy, "laplace") < heavy.max()
    assert clip(rare, "auto") == 1 > clip(rare, "laplace")
    assert clip(heavy, "gauss") == pytest.approx(gauss_constant(3) * 2**0.5, rel=0.02)
    x = torch.stack([heavy, rare]).reshape(1, 2, 100, 1000)
    each = torch.stack([clip(heavy, "laplace"), rare.max()])
    torch.testing.assert_close(clip(x, "auto", -3), each)


def test_calibrated_channels_are_laplace_unless_asked_otherwise() -> None:
    one = torch.ones(1)
    statistics = ChannelStatistics(-50 * one, 50 * one, one, one, 0 * one, one, 1.5 * one)
    for distribution, expected in (
        ("auto", laplace_constant(4)),
        ("laplace", laplace_constant(4)),
        ("gauss", 1.5 * gauss_constant(4)),
    ):
        spec = TensorSpec(bits=4, range="aciq", distribution=distribution)  # type: ignore[arg-type]
        assert channel_range(statistics, spec)[1].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (8, 5, 33, 65), (2, 300, 7, 7)])
def test_every_shape_and_layout_has_values_to_judge_by(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    x = laplace(*shape).contiguous(memory_format=layout)
    spec = TensorSpec(range="aciq")
    for axis, size in ((None, ()), (-3, (shape[1],))):
        low, high = batch_range(x, spec, None, axis)
        assert low.shape == high.shape == size
        assert (low < high).all()


def test_a_constant_channel_keeps_its_value() -> None:
    x = torch.stack([torch.full((4, 5), 3.0), torch.randn(4, 5)], dim=1)[..., None]
    low, high = batch_range(x, TensorSpec(range="aciq"), None, -3)
    assert (low[0].item(), high[0].item()) == (3, 3)


@pytest.mark.parametrize(("kind", "ends"), [("minmax", (-4.0, 8.0)), ("ema", (-2.0, 4.0))])
def test_calibrated_ranges_are_those_that_the_spec_names(
    kind: str, ends: tuple[float, float]
) -> None:
    one = torch.ones(1)
    statistics = ChannelStatistics(-4 * one, 8 * one, -2 * one, 4 * one, 0 * one, one, one)
    low, high = channel_range(statistics, TensorSpec(range=kind))  # type: ignore[arg-type]
    assert (low.item(), high.item()) == ends
