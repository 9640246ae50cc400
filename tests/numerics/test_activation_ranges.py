"""Each way to choose a range, against slow and obvious references on the values themselves."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fxquant.numerics.activation_ranges import Statistics, activation_range
from fxquant.numerics.affine import Affine, Grid, activation_grid
from fxquant.numerics.closed_clips import corrected_range, report_range
from fxquant.numerics.histogram import Histogram, count_values
from fxquant.numerics.optimal_clip import optimal_range
from fxquant.numerics.weight_ranges import weight_range
from fxquant.recipe.spec import TensorSpec

BIN = 1 / 32  # of the histogram, relative to its value
RELU, RELU6 = (0.0, math.inf), (0.0, 6.0)
ACIQ = {"report": report_range, "corrected": corrected_range, "optimal": optimal_range}

_shares = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
_normal = torch.special.ndtri(_shares).float()
_laplace = (-(2 * _shares - 1).sign() * (1 - (2 * _shares - 1).abs()).log()).float()
SAMPLES = {
    "normal": _normal,
    "laplace": _laplace,
    "shifted": _laplace + 1,
    "relu": _normal.relu(),
    "uniform": 2 * _shares.float() - 1,
    "negative": -_shares.float() - 0.5,
    "outlier": torch.cat([_normal, torch.tensor([40.0])]),
}
each_sample = pytest.mark.parametrize("x", SAMPLES.values(), ids=SAMPLES)

SPECS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "percentile": {"range": "percentile", "percentile": 99.0},
    "mse": {"range": "mse"},
    **{
        f"aciq-{clip}-{distribution}": {
            "range": "aciq",
            "clip": clip,
            "distribution": distribution,
        }
        for clip in ACIQ
        for distribution in ("auto", "laplace", "gauss")
    },
}
each_method = pytest.mark.parametrize("options", SPECS.values(), ids=SPECS)
each_symmetry = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def statistics_of(x: Tensor, clamp: tuple[float, float] | None = None) -> Statistics:
    low, high = x.min().item(), x.max().item()
    histogram = Histogram.of_counts(count_values(x), low, high)
    return Statistics(low, high, low / 2, high / 2, histogram, clamp)


def errors(x: Tensor, low: Any, high: Any, spec: TensorSpec, grid: Grid) -> Tensor:
    """Return the mean squared error of quantizing the last axis of `x` over [low, high]."""
    low, high = (torch.as_tensor(end, dtype=torch.float64)[..., None] for end in (low, high))
    affine = Affine.over(low, high, grid, symmetric=spec.symmetric)
    return affine.error(x.to(torch.float64)).square().mean(dim=-1)


def activation_error(x: Tensor, low: Any, high: Any, spec: TensorSpec) -> Tensor:
    return errors(x, low, high, spec, activation_grid(x.min().item(), spec))


def weight_errors(rows: Tensor, ends: tuple[Tensor, Tensor], spec: TensorSpec) -> Tensor:
    return errors(rows, *ends, spec, Grid.of(spec.bits, signed=True))


def least_activation_error(x: Tensor, spec: TensorSpec) -> float:
    """Return the least error of 33 x 33 ranges, down to 1/100 of either end."""
    factors = torch.linspace(0.1, 1, 33, dtype=torch.float64) ** 2
    lows = factors * x.min() if x.min() < 0 else torch.zeros(1).double()
    highs = factors * x.max() if x.max() > 0 else torch.zeros(1).double()
    return min(activation_error(x, low.expand_as(highs), highs, spec).min().item() for low in lows)


@each_sample
@pytest.mark.parametrize("clamp", [None, RELU, RELU6])
def test_minmax_is_all_that_was_seen(x: Tensor, clamp: tuple[float, float] | None) -> None:
    seen = x.clamp(*clamp) if clamp else x
    expected = seen.min().item(), seen.max().item()
    assert activation_range(statistics_of(x, clamp), TensorSpec()) == expected


def test_ema_is_the_average_behind_the_relu() -> None:
    x = torch.tensor([-4.0, 20.0])  # the averages are -2 and 10
    spec = TensorSpec(range="ema")
    assert activation_range(statistics_of(x), spec) == (-2, 10)
    assert activation_range(statistics_of(x, RELU), spec) == (0, 10)
    assert activation_range(statistics_of(x, RELU6), spec) == (0, 6)


@each_sample
@pytest.mark.parametrize("percentile", [80.0, 99.0, 99.9, 100.0])
def test_percentile_leaves_out_that_share(x: Tensor, percentile: float) -> None:
    spec = TensorSpec(range="percentile", percentile=percentile)
    outside = 1 - percentile / 100
    if x.min() < 0 < x.max():
        outside /= 2  # of each side
    shares = (outside if x.min() < 0 else 0.0, 1 - outside if x.max() > 0 else 1.0)
    for end, share in zip(activation_range(statistics_of(x), spec), shares, strict=True):
        below = x.quantile(share, interpolation="lower").item()
        above = x.quantile(share, interpolation="higher").item()
        assert below - BIN * abs(below) <= end <= above + BIN * abs(above)


@each_sample
@each_symmetry
@pytest.mark.parametrize(("bits", "slack"), [(2, 0.01), (3, 0.01), (4, 0.01), (8, 0.02)])
def test_mse_is_within_one_percent_of_brute_force(
    x: Tensor, symmetric: bool, bits: int, slack: float
) -> None:
    # 8 bits: what one sample in the tail costs makes jumps of a percent between two clips
    spec = TensorSpec(bits=bits, symmetric=symmetric, range="mse")
    low, high = activation_range(statistics_of(x), spec)
    error = activation_error(x, low, high, spec).item()
    assert error <= (1 + slack) * least_activation_error(x, spec)


@each_sample
@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("clip", ACIQ)
@pytest.mark.parametrize("clamp", [None, RELU])
def test_aciq_is_the_clip_for_the_tensors_own_moments(
    x: Tensor, clamp: tuple[float, float] | None, clip: str, distribution: str
) -> None:
    options: dict[str, Any] = {"clip": clip, "distribution": distribution}
    spec = TensorSpec(bits=3, range="aciq", **options)
    values = x.double()
    mean = values.mean()
    laplace, gauss = (values - mean).abs().mean(), values.std(correction=0)
    low, high = ACIQ[clip](
        mean,
        laplace if distribution == "laplace" else gauss,
        3,
        distribution=distribution,
        fused_relu=clamp is not None,
    )
    seen = x.relu() if clamp else x
    expected = (
        low.clamp(seen.min(), seen.min().clamp(min=0)).item(),
        high.clamp(seen.max().clamp(max=0), seen.max()).item(),
    )
    assert activation_range(statistics_of(x, clamp), spec) == pytest.approx(expected, rel=0.01)


@each_sample
@each_method
def test_no_range_is_wider_than_what_was_seen(x: Tensor, options: dict[str, Any]) -> None:
    for clamp, bits in itertools.product((None, RELU, RELU6), (2, 8, 16)):
        seen = x.clamp(*clamp) if clamp else x
        low, high = activation_range(statistics_of(x, clamp), TensorSpec(bits=bits, **options))
        assert seen.min().item() <= low <= high <= seen.max().item()


@each_sample
@pytest.mark.parametrize("clip", ACIQ)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_aciq_auto_errs_no_more_than_any_fit_or_than_not_clipping(
    x: Tensor, clip: str, bits: int
) -> None:
    for clamp, symmetric in itertools.product((None, RELU), (False, True)):
        seen, statistics = (x.clamp(*clamp) if clamp else x), statistics_of(x, clamp)
        by_name: dict[str, float] = {}
        for name in ("auto", "laplace", "gauss", "minmax"):
            options = SPECS.get(f"aciq-{clip}-{name}", {})
            spec = TensorSpec(bits=bits, symmetric=symmetric, **options)
            by_name[name] = activation_error(seen, *activation_range(statistics, spec), spec).item()
        assert by_name.pop("auto") <= 1.01 * min(by_name.values()), (clamp, symmetric)


@each_method
def test_a_constant_activation_is_kept(options: dict[str, Any]) -> None:
    for value, clamp in itertools.product((0.0, 3.0, -3.0, 1e-30, 1e30), (None, RELU)):
        x = torch.full((10,), value)
        kept = x[0].clamp(*clamp).item() if clamp else x[0].item()
        assert activation_range(statistics_of(x, clamp), TensorSpec(**options)) == (kept, kept)


@each_method
def test_a_huge_outlier_leaves_a_usable_range(options: dict[str, Any]) -> None:
    for size in (1e2, 1e4, 1e30):
        x = torch.cat([SAMPLES["normal"], torch.tensor([size])])
        low, high = activation_range(statistics_of(x), TensorSpec(bits=4, **options))
        assert -4 <= low < 0 < high <= x.max().item()


def test_methods_that_clip_drop_an_outlier_that_costs_more_than_it_brings() -> None:
    x = torch.cat([SAMPLES["normal"].repeat(25), torch.tensor([100.0])])
    for name in ("percentile", "mse", "aciq-corrected-auto", "aciq-optimal-auto"):
        _, high = activation_range(statistics_of(x), TensorSpec(bits=4, **SPECS[name]))
        assert high < 30, name


@pytest.mark.parametrize(
    ("symmetric", "low", "signed"),
    [(False, -1.0, False), (False, 0.0, False), (True, -1.0, True), (True, 0.0, False)],
)
def test_a_symmetric_grid_is_signed_only_for_negative_values(
    symmetric: bool, low: float, signed: bool
) -> None:
    spec = TensorSpec(bits=4, symmetric=symmetric)
    assert activation_grid(low, spec) == Grid.of(4, signed=signed)


def weights() -> Tensor:
    """Return rows of different spread, mean and shape: (6, 2000)."""
    normal, laplace = torch.randn(2000), SAMPLES["laplace"][::2]
    outlier = torch.cat([torch.randn(1999), torch.tensor([30.0])])
    return torch.stack(
        [normal, normal * 1e-3, laplace + 1, laplace.abs() + 1, -laplace.abs(), outlier]
    )


def test_weight_minmax_is_each_rows_ends() -> None:
    rows = weights()
    low, high = weight_range(rows, TensorSpec())
    assert low.dtype == high.dtype == torch.float64
    assert torch.equal(low, rows.amin(1).double())
    assert torch.equal(high, rows.amax(1).double())


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_weight_percentile_leaves_out_that_share_of_each_row(percentile: float) -> None:
    rows = weights()
    low, high = weight_range(rows, TensorSpec(range="percentile", percentile=percentile))
    outside = (1 - percentile / 100) / 2
    for end, share in ((low, outside), (high, 1 - outside)):
        assert (end >= rows.quantile(share, dim=1, interpolation="lower")).all()
        assert (end <= rows.quantile(share, dim=1, interpolation="higher")).all()


@each_symmetry
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_mse_is_within_one_percent_of_brute_force(bits: int, symmetric: bool) -> None:
    rows = weights()
    spec = TensorSpec(bits=bits, symmetric=symmetric, range="mse")
    low, high = rows.amin(1).double(), rows.amax(1).double()
    factors = torch.cat([torch.logspace(-3, -1, 50), torch.linspace(0.1, 1, 181)]).double()
    least = torch.stack(
        [weight_errors(rows, (low * each, high * each), spec) for each in factors]
    ).amin(0)
    chosen = weight_errors(rows, weight_range(rows, spec), spec)
    assert (chosen / least).tolist() == pytest.approx([1] * 6, abs=0.02 if bits == 8 else 0.01)


@each_symmetry
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("clip", ACIQ)
def test_weight_aciq_auto_errs_no_more_than_any_fit_or_than_not_clipping(
    clip: str, bits: int, symmetric: bool
) -> None:
    rows = weights()
    by_name: dict[str, Tensor] = {}
    for name in ("auto", "laplace", "gauss", "minmax"):
        options = SPECS.get(f"aciq-{clip}-{name}", {})
        spec = TensorSpec(bits=bits, symmetric=symmetric, **options)
        by_name[name] = weight_errors(rows, weight_range(rows, spec), spec)
    auto = by_name.pop("auto")
    for name, each in by_name.items():
        assert (auto / each).max().item() <= 1 + 1e-6, name


@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("clip", ACIQ)
def test_weight_aciq_is_the_clip_for_the_rows_own_moments(clip: str, distribution: str) -> None:
    rows = weights().double()
    mean = rows.mean(1)
    laplace, gauss = (rows - mean[:, None]).abs().mean(1), rows.std(1, correction=0)
    spread = laplace if distribution == "laplace" else gauss
    low, high = ACIQ[clip](mean, spread, 3, distribution=distribution, fused_relu=False)
    spec = TensorSpec(bits=3, **SPECS[f"aciq-{clip}-{distribution}"])
    chosen = weight_range(rows, spec)
    torch.testing.assert_close(chosen[0], torch.maximum(low, rows.amin(1)))
    torch.testing.assert_close(chosen[1], torch.minimum(high, rows.amax(1)))


@each_method
@each_symmetry
def test_each_row_is_judged_alone(symmetric: bool, options: dict[str, Any]) -> None:
    rows, spec = weights(), TensorSpec(bits=4, symmetric=symmetric, **options)
    together = weight_range(rows, spec)
    for index in range(len(rows)):
        alone = weight_range(rows[index : index + 1], spec)
        for all_ends, end in zip(together, alone, strict=True):
            torch.testing.assert_close(all_ends[index : index + 1], end)


@each_method
@each_symmetry
def test_constant_rows_are_kept(symmetric: bool, options: dict[str, Any]) -> None:
    rows = torch.tensor([0.0, 0.1, -0.1, 1e-20, 1e10])[:, None].expand(5, 30)
    for bits in (2, 8):
        spec = TensorSpec(bits=bits, symmetric=symmetric, **options)
        error = weight_errors(rows, weight_range(rows, spec), spec).sqrt()
        assert (error / rows[:, 0].abs().clamp(min=1e-30)).max().item() < 1e-6


@each_method
def test_no_weight_range_is_wider_than_the_row(options: dict[str, Any]) -> None:
    rows = weights()
    low, high = weight_range(rows, TensorSpec(bits=8, **options))
    assert (low >= rows.amin(1)).all()
    assert (high <= rows.amax(1)).all()
    assert (low <= high).all()
