"""The histogram of float32's own bins: its statistics, and that nothing depends on the batches."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant.numerics.histogram import NUM_BINS, Histogram, count_values

BIN = 1 / 32  # the widest bin, relative to its value
ZERO_BIN = 4e-40  # the bin that holds zero reaches to the smallest subnormal numbers

SAMPLES: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: torch.randn(4000),
    "shifted": lambda: torch.randn(4000) - 5,
    "skewed": lambda: torch.randn(4000).exp(),
    "tiny": lambda: torch.randn(4000) * 1e-30,
    "huge": lambda: torch.randn(4000) * 1e30,
    "relu": lambda: torch.randn(4000).relu(),
    "negative": lambda: -torch.rand(4000) - 1,
    "outlier": lambda: torch.cat([torch.randn(3999), torch.tensor([1e4])]),
}
each_sample = pytest.mark.parametrize("make", SAMPLES.values(), ids=SAMPLES)


def histogram_of(x: Tensor) -> Histogram:
    return Histogram.of_counts(count_values(x), x.min().item(), x.max().item())


@each_sample
def test_moments_are_the_samples(make: Callable[[], Tensor]) -> None:
    x = make()
    histogram, x = histogram_of(x), x.double()
    sigma = x.std(correction=0)
    positive = x[x > 0].mean().item() if (x > 0).any() else 0.0
    for ours, exact in (
        (histogram.mean(), x.mean().item()),
        (histogram.mean_deviation(), (x - x.mean()).abs().mean().item()),
        (histogram.standard_deviation(), sigma.item()),
        (histogram.positive_mean(), positive),
    ):
        assert ours.item() == pytest.approx(exact, rel=5e-3, abs=2e-3 * sigma.item())


@each_sample
def test_quantiles_are_the_samples_to_a_bin(make: Callable[[], Tensor]) -> None:
    x = make()
    histogram = histogram_of(x)
    for share in (0.001, 0.1, 0.3, 0.5, 0.77, 0.99, 0.999):
        below, above = (
            np.quantile(x.numpy(), share, method=method) for method in ("lower", "higher")
        )
        slack = BIN * max(abs(below), abs(above)) + ZERO_BIN
        assert below - slack <= histogram.quantile(share).item() <= above + slack


@each_sample
def test_the_outermost_quantiles_are_the_ends(make: Callable[[], Tensor]) -> None:
    x = make()
    histogram = histogram_of(x)
    ends = [histogram.quantile(share).item() for share in (0.0, 1.0)]
    assert ends == pytest.approx([x.min().item(), x.max().item()], rel=1e-6)


@each_sample
def test_bins_ascend_and_weigh_one_within_the_ends(make: Callable[[], Tensor]) -> None:
    x = make()
    histogram = histogram_of(x)
    assert (histogram.values.diff() >= 0).all()
    assert histogram.weights.sum().item() == pytest.approx(1)
    assert (histogram.values - histogram.widths / 2).min().item() >= x.min().item()
    assert (histogram.values + histogram.widths / 2).max().item() <= x.max().item()
    assert (histogram.widths <= BIN * histogram.values.abs() * 1.02 + ZERO_BIN).all()


@pytest.mark.parametrize("shape", [(32, 50), (32, 3, 10, 10), (32, 64, 40, 40)])
def test_counts_depend_neither_on_batches_nor_on_order(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    at_once = count_values(x)
    batches = [count_values(batch) for batch in torch.split(x, [1, 2, 5, 24])]
    shuffled = [count_values(x[index : index + 4]) for index in torch.randperm(8) * 4]
    assert torch.equal(at_once, torch.stack(batches).sum(0))
    assert torch.equal(at_once, torch.stack(shuffled).sum(0))


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 32, 40, 40), (4, 8, 9, 30, 40)])
def test_channels_last_counts_as_many_values_as_contiguous(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    contiguous, channels_last = count_values(x), count_values(x.to(memory_format=layout))
    assert channels_last.sum() == contiguous.sum()
    if math.prod(shape[1:]) <= 1 << 14:  # nothing is left out
        assert torch.equal(channels_last, contiguous)


@pytest.mark.parametrize("shape", [(), (1,), (100_000,), (0,), (2, 3), (2, 3, 200, 200), (0, 3)])
def test_memory_is_constant(shape: tuple[int, ...]) -> None:
    counts = count_values(torch.randn(shape))
    assert counts.shape == (NUM_BINS,)
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("side", [64, 128, 200, 224, 255, 256, 384, 1000])
def test_a_large_sample_is_thinned_to_about_16384_values(side: int) -> None:
    count = int(count_values(torch.randn(2, 3, side, side)).sum()) // 2
    assert min(3 * side**2, 1 << 13) <= count <= 1 << 14


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 16, 64, 128), (1, 64, 56, 56), (1, 32, 96, 96)])
def test_a_thinned_sample_sees_every_row_column_and_channel(
    shape: tuple[int, ...], layout: torch.memory_format, axis: int
) -> None:
    size = shape[axis]
    names = 2.0 ** torch.arange(-size // 2, size - size // 2)  # a bin of its own for each index
    x = names.reshape([-1 if each == axis else 1 for each in range(4)]).expand(shape)
    counts = count_values(x.contiguous(memory_format=layout))
    seen = counts[counts > 0]
    assert len(seen) == size
    assert seen.max() <= 1.1 * seen.float().mean() + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_count_like_float32(dtype: torch.dtype) -> None:
    x = torch.randn(3, 100).to(dtype)
    assert torch.equal(count_values(x), count_values(x.to(torch.float32)))


def test_nan_and_infinity_do_not_crash() -> None:
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 1.0])
    assert count_values(x).sum() == 5


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.7, 1e-40, 1e38])
def test_one_value_is_kept_exactly(value: float) -> None:
    x = torch.full((2, 50), value)
    exact = x[0, 0].item()
    histogram = histogram_of(x)
    assert histogram.mean().item() == exact
    assert histogram.mean_deviation().item() == 0
    assert histogram.standard_deviation().item() == 0
    assert [histogram.quantile(share).item() for share in (0, 0.5, 1)] == [exact] * 3


def test_no_positive_value_has_positive_mean_zero() -> None:
    assert histogram_of(torch.tensor([-1.0, 0.0])).positive_mean().item() == 0


@each_sample
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_clamped_is_the_histogram_of_the_clamped_tensor(
    make: Callable[[], Tensor], bounds: tuple[float, float]
) -> None:
    x = make()
    clamped, expected = histogram_of(x).clamped(*bounds), histogram_of(x.clamp(*bounds))
    scale = x.clamp(*bounds).abs().mean().item()
    assert clamped.mean().item() == pytest.approx(
        expected.mean().item(), rel=1e-3, abs=1e-9 * scale
    )
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        quantile = expected.quantile(share).item()
        assert clamped.quantile(share).item() == pytest.approx(quantile, rel=BIN, abs=1e-9 * scale)


@each_sample
def test_subdividing_keeps_mass_and_mean(make: Callable[[], Tensor]) -> None:
    histogram = histogram_of(make())
    points, weights = histogram.subdivided(5)
    assert points.shape == weights.shape == (5 * len(histogram.values),)
    assert weights.sum().item() == pytest.approx(1)
    mean = (points * weights).sum().item()
    assert mean == pytest.approx(histogram.mean().item(), abs=1e-12 * points.abs().max().item())


def test_zeros_count_as_not_positive() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 4.0, -2.0])
    assert histogram_of(x).positive_mean().item() == pytest.approx(4)
