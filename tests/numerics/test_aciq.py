"""ACIQ: the constants, the two equations, and the clip against a brute-force search on samples.

The samples are the midpoints of 200,000 strata, weighted by the strata's exact masses: they carry
no sampling noise, and reach 30 spreads into the tail.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.nn import functional as F

from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.closed_clips import (
    corrected_range,
    gauss_constant,
    lambert_w_of_exp,
    laplace_constant,
    report_range,
    weighted_range,
)
from fxquant.numerics.optimal_clip import expected_error, optimal_range

# c(M); Table II is c(M + 1). The second is the table of the authors' code, from a numeric minimum.
TABLE_1 = {
    2: 2.83068299,
    3: 3.89722946,
    4: 5.02864014,
    5: 6.20476633,
    6: 7.41312622,
    7: 8.64561995,
    8: 9.89675982,
    9: 11.16268502,
}
GAUSS_TABLE = {
    2: 1.71063519,
    3: 2.15159277,
    4: 2.55913646,
    5: 2.93620062,
    6: 3.28691474,
    7: 3.6151146,
    8: 3.92403714,
}
DISTRIBUTIONS = {"laplace": stats.laplace, "gauss": stats.norm}  # of unit spread: b = 1, σ = 1
RATIOS = torch.arange(-3.0, 4.0, dtype=torch.float64)  # μ/b; 97 % of the report's are in [-3, 3]
ONES = torch.ones_like(RATIOS)

each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
with_and_without_relu = pytest.mark.parametrize("fused_relu", [False, True], ids=["full", "relu"])


class Samples:
    """Values in ascending order and their weights: behind the ReLU, if there is one."""

    def __init__(self, distribution: str, ratio: float, fused_relu: bool) -> None:
        known = DISTRIBUTIONS[distribution]
        edges = known.ppf(np.linspace(0, 1, 200_002)[1:-1], scale=3)
        values = torch.from_numpy((edges[1:] + edges[:-1]) / 2) + ratio
        self.values = values.relu() if fused_relu else values
        self.weights = torch.from_numpy(np.diff(known.cdf(edges)))

    def error(self, low: Tensor, high: Tensor, grid: Grid, *, symmetric: bool = False) -> float:
        """Return E[(x - Q(x))²]."""
        noise = Affine.over(low, high, grid, symmetric=symmetric).error(self.values)
        return float((noise.square() * self.weights).sum())

    def errors(self, lows: Tensor, highs: Tensor, grid: Grid, *, symmetric: bool = False) -> Tensor:
        """Return `error` for many clips: what rounds to a level is a slice of the values."""
        affine = Affine.over(lows[:, None], highs[:, None], grid, symmetric=symmetric)
        integers = torch.arange(grid.quant_min, grid.quant_max + 1, dtype=torch.float64)
        levels = affine.dequantize(integers)
        inner = torch.searchsorted(self.values, (levels[:, 1:] + levels[:, :-1]) / 2)
        ends = torch.zeros_like(inner[:, :1]), torch.full_like(inner[:, :1], len(self.values))
        slices = torch.cat([ends[0], inner, ends[1]], dim=1)
        m0, m1, m2 = (
            F.pad((self.values**power * self.weights).cumsum(0), (1, 0))[slices].diff(dim=1)
            for power in range(3)
        )
        return (m2 - 2 * levels * m1 + levels**2 * m0).sum(dim=1)


samples = cache(Samples)


def clips(alphas: Tensor, mean: Tensor | float, fused_relu: bool) -> tuple[Tensor, Tensor]:
    """Return the clips that ACIQ chooses among: [0, α] behind a ReLU, else [μ - α, μ + α]."""
    return (torch.zeros_like(alphas), alphas) if fused_relu else (mean - alphas, mean + alphas)


@pytest.mark.parametrize(("bits", "table"), TABLE_1.items())
def test_laplace_constant_solves_table_1(bits: int, table: float) -> None:
    c = laplace_constant(bits)
    assert c == pytest.approx(table, abs=1e-6)
    assert 2 * np.exp(-c) == pytest.approx(2 * c / (3 * 4**bits), rel=1e-12)


@pytest.mark.parametrize(
    ("bits", "printed"), [(4, 5.03), (5, 6.2), (6, 7.41), (7, 8.64), (8, 9.89), (9, 11.16)]
)
def test_laplace_constant_is_the_reports_to_two_digits(bits: int, printed: float) -> None:
    assert laplace_constant(bits) == pytest.approx(printed, abs=0.01)  # it cuts 8.6456 to 8.64


@pytest.mark.parametrize(("bits", "table"), GAUSS_TABLE.items())
def test_gauss_constant_solves_its_equation(bits: int, table: float) -> None:
    c = gauss_constant(bits)
    assert c == pytest.approx(table, abs=5e-6)
    excess = stats.norm.pdf(c) - c * stats.norm.sf(c)  # E[(X - c)⁺]
    assert 2 * c / (3 * 4**bits) == pytest.approx(4 * excess, rel=1e-9)


def test_lambert_w_equals_scipys() -> None:
    x = np.concatenate([np.linspace(-700, 700, 1001), np.linspace(-2, 3, 101)])
    ours = lambert_w_of_exp(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, special.lambertw(np.exp(x)).real, rtol=1e-13)


@pytest.mark.parametrize("x", [710.0, 1e4, 1e100, 1e300])
def test_lambert_w_takes_arguments_that_overflow(x: float) -> None:
    w = lambert_w_of_exp(torch.tensor(x, dtype=torch.float64)).item()
    assert w + np.log(w) == pytest.approx(x, rel=1e-12)


@each_distribution
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_report_range_is_the_tables(bits: int, distribution: str) -> None:
    constant = laplace_constant if distribution == "laplace" else gauss_constant
    mean, spread = torch.tensor([-2.0, 3.0]), torch.tensor([0.5, 2.0])
    full = report_range(mean, spread, bits, distribution=distribution, fused_relu=False)
    assert torch.equal(full[0], mean - constant(bits) * spread)
    assert torch.equal(full[1], mean + constant(bits) * spread)
    relu = report_range(mean, spread, bits, distribution=distribution, fused_relu=True)
    assert relu[0].tolist() == [0, 0]
    assert torch.equal(relu[1], torch.tensor([0.0, 3.0]) + constant(bits + 1) * spread)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("bits", range(2, 9))
def test_corrected_range_solves_the_reports_equation(bits: int, spread: float) -> None:
    mean = torch.linspace(-3, 3, 61, dtype=torch.float64) * spread
    b = torch.full_like(mean, spread)
    low, alpha = corrected_range(mean, b, bits, distribution="laplace", fused_relu=True)
    assert not low.any()
    torch.testing.assert_close(
        alpha / (3 * 2 ** (2 * bits + 2)), b * torch.exp(-(alpha - mean) / b), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_corrected_range_solves_the_gauss_analogue(bits: int) -> None:
    mean = torch.linspace(-3, 3, 61, dtype=torch.float64)
    ones = torch.ones_like(mean)
    _, alpha = corrected_range(mean, ones, bits, distribution="gauss", fused_relu=True)
    z = (alpha - mean).numpy()
    excess = stats.norm.pdf(z) - z * stats.norm.sf(z)  # E[(X - α)⁺]; b/2·e^(-(α-μ)/b) for Laplace
    np.testing.assert_allclose(alpha / (3 * 2 ** (2 * bits + 2)), 2 * excess, rtol=1e-7)


@each_distribution
def test_corrected_range_at_mean_zero_is_table_2(distribution: str) -> None:
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": True}
    for bits in range(2, 9):
        corrected = corrected_range(zero, one, bits, **options)
        torch.testing.assert_close(corrected, report_range(zero, one, bits, **options))


@each_distribution
@with_and_without_relu
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_expected_error_is_what_samples_show(
    bits: int, symmetric: bool, fused_relu: bool, distribution: str
) -> None:
    grid = Grid.of(bits, signed=symmetric and not fused_relu)
    for ratio in RATIOS:
        low, high = clips(torch.tensor([0.3, 2.0, 6.0], dtype=torch.float64), ratio, fused_relu)
        affine = Affine.over(low, high, grid, symmetric=symmetric)
        expected = expected_error(ratio, affine, distribution, fused_relu)
        x = samples(distribution, ratio.item(), fused_relu)
        measured = [
            x.error(*ends, grid, symmetric=symmetric) for ends in zip(low, high, strict=True)
        ]
        assert expected.tolist() == pytest.approx(measured, rel=2e-3)


@each_distribution
@with_and_without_relu
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_clip_errs_noticeably_less_than_optimal_range(
    bits: int, symmetric: bool, fused_relu: bool, distribution: str
) -> None:
    grid = Grid.of(bits, signed=symmetric and not fused_relu)
    ends = optimal_range(
        RATIOS, ONES, bits, distribution=distribution, fused_relu=fused_relu, symmetric=symmetric
    )
    alphas = torch.linspace(0.02, 18, 500, dtype=torch.float64)
    for ratio, low, high in zip(RATIOS.tolist(), *ends, strict=True):
        x = samples(distribution, ratio, fused_relu)
        lows, highs = clips(alphas, ratio, fused_relu)
        best = int(x.errors(lows, highs, grid, symmetric=symmetric).argmin())
        assert 0 < best < 499
        least = x.error(lows[best], highs[best], grid, symmetric=symmetric)
        assert x.error(low, high, grid, symmetric=symmetric) <= 1.01 * least, ratio


@each_distribution
@pytest.mark.parametrize("bits", range(2, 9))
def test_corrected_range_errs_less_than_the_reports_where_the_mean_is_positive(
    bits: int, distribution: str
) -> None:
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": True}
    positive = RATIOS[RATIOS > 0]
    ends = [
        choose(positive, torch.ones_like(positive), bits, **options)
        for choose in (corrected_range, report_range)
    ]
    for index, ratio in enumerate(positive.tolist()):
        x = samples(distribution, ratio, True)
        grid = Grid.of(bits, signed=False)
        ours, theirs = (x.error(low[index], high[index], grid) for low, high in ends)
        assert ours < theirs


@each_distribution
@pytest.mark.parametrize("bits", range(3, 9))
def test_no_clip_errs_noticeably_less_than_weighted_range_from_three_bits(
    bits: int, distribution: str
) -> None:
    grid = Grid.of(bits, signed=False)
    ends = weighted_range(RATIOS, ONES, bits, distribution=distribution, fused_relu=True)
    alphas = torch.linspace(0.02, 18, 500, dtype=torch.float64)
    for ratio, low, high in zip(RATIOS.tolist(), *ends, strict=True):
        x = samples(distribution, ratio, True)
        least = x.errors(*clips(alphas, ratio, True), grid).min()
        assert x.error(low, high, grid) <= 1.01 * least, ratio


def test_weighted_range_is_corrected_at_zero_mean_and_table_2_below() -> None:
    zero, below = torch.zeros(1, dtype=torch.float64), torch.tensor([-2.0, -50.0]).double()
    options: dict[str, Any] = {"distribution": "laplace", "fused_relu": True}
    _, weighted = weighted_range(zero, torch.ones_like(zero), 4, **options)
    _, corrected = corrected_range(zero, torch.ones_like(zero), 4, **options)
    torch.testing.assert_close(weighted, corrected)
    _, high = weighted_range(below, torch.ones_like(below), 4, **options)
    torch.testing.assert_close(high, torch.full_like(high, laplace_constant(5)))


@each_distribution
@with_and_without_relu
@pytest.mark.parametrize("choose", [report_range, corrected_range, weighted_range, optimal_range])
def test_a_vector_equals_its_elements(choose: Any, fused_relu: bool, distribution: str) -> None:
    mean, spread = torch.tensor([[-1.0, 0.0, 2.0], [30.0, -9.0, 0.1]]), torch.tensor([0.5, 1, 2])
    spread = spread.expand_as(mean)
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": fused_relu}
    low, high = choose(mean, spread, 3, **options)
    assert low.shape == high.shape == mean.shape
    for index in np.ndindex(2, 3):
        alone = choose(mean[index], spread[index], 3, **options)
        torch.testing.assert_close((low[index], high[index]), alone)


def test_optimal_range_scales_with_the_tensor() -> None:
    for spread in (1e-6, 1e6):
        low, high = optimal_range(
            RATIOS * spread, ONES * spread, 4, distribution="laplace", fused_relu=False
        )
        one = optimal_range(RATIOS, ONES, 4, distribution="laplace", fused_relu=False)
        torch.testing.assert_close((low / spread, high / spread), one)


@each_distribution
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ratio", [50.0, 1e3, 2e4, 1e6])
def test_optimal_range_keeps_a_mean_far_above_the_spread(
    ratio: float, bits: int, distribution: str
) -> None:
    mean = torch.tensor(ratio, dtype=torch.float64)
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": True}
    _, high = optimal_range(mean, torch.ones_like(mean), bits, **options)
    assert high > 0.99 * mean  # below it, all values would be clipped


@each_distribution
@with_and_without_relu
def test_optimal_range_at_16_bits_is_the_weighted_one(fused_relu: bool, distribution: str) -> None:
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": fused_relu}
    ours = optimal_range(RATIOS, ONES, 16, **options)
    torch.testing.assert_close(ours, weighted_range(RATIOS, ONES, 16, **options), rtol=0, atol=0)
