"""Eqs. (1)-(8): from a range to a grid, onto it and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxquant.numerics.affine import Affine, AffineNumbers, Grid, along_axis

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
FLOAT32_TINY = torch.finfo(torch.float32).tiny

grids = st.builds(
    lambda bits, signed: Grid.of(bits, signed=signed), st.sampled_from(BITS), st.booleans()
)


def floats(largest: float) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, width=32)


def over(low: float, high: float, grid: Grid, symmetric: bool = False) -> Affine:
    return Affine.over(torch.tensor(low), torch.tensor(high), grid, symmetric=symmetric)


@pytest.mark.parametrize("bits", BITS)
def test_a_grid_has_all_integers_of_its_bits(bits: int) -> None:
    assert Grid.of(bits, signed=False) == Grid(0, 2**bits - 1)
    assert Grid.of(bits, signed=True) == Grid(-(2**bits) // 2, 2**bits // 2 - 1)
    assert Grid.of(bits, signed=True).steps == Grid.of(bits, signed=False).steps == 2**bits - 1


# s = 4/255; z = quant_min + round(63.75); 0.5/s = 31.875, 3/s = 191.25, -1/s = -63.75
@pytest.mark.parametrize(
    ("grid", "zero_point", "integers"),
    [
        (Grid(0, 255), 64, [0, 64, 96, 255, 255, 0]),
        (Grid(-128, 127), -64, [-128, -64, -32, 127, 127, -128]),
    ],
)
def test_asymmetric_by_hand(grid: Grid, zero_point: int, integers: list[int]) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 3.0, 10.0, -10.0])
    affine = over(-1.0, 3.0, grid)
    q = affine.quantize(x)
    assert affine.scale.item() == pytest.approx(4 / 255)
    assert affine.zero_point.item() == zero_point
    assert q.tolist() == integers
    steps = torch.tensor([-64, 0, 32, 191, 191, -64])
    assert affine.dequantize(q).tolist() == pytest.approx((steps * 4 / 255).tolist())
    assert torch.equal(affine.round(x), affine.dequantize(q))
    assert torch.equal(affine.error(x), affine.round(x) - x)


@pytest.mark.parametrize(
    ("low", "high", "grid", "scale", "integers"),
    [
        (-1.0, 3.0, Grid(-128, 127), 3 / 127, [-42, 21, 127]),  # -1/s = -42.33, 0.5/s = 21.17
        (-3.0, 1.0, Grid(-128, 127), 3 / 128, [-43, 21, 127]),  # -42.67, 21.33, 128
        (-1.0, 3.0, Grid(0, 255), 3 / 255, [0, 42, 255]),  # Eq. (7): negative values are clipped
        (-1.0, 3.0, Grid(-2, 1), 3.0, [0, 0, 1]),
    ],
)
def test_symmetric_by_hand(
    low: float, high: float, grid: Grid, scale: float, integers: list[int]
) -> None:
    affine = over(low, high, grid, symmetric=True)
    assert affine.scale.item() == pytest.approx(scale)
    assert affine.zero_point.item() == 0
    assert affine.quantize(torch.tensor([-1.0, 0.5, 3.0])).tolist() == integers


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"), [(2.0, 6.0, 2.0, 0), (-6.0, -2.0, 2.0, 3)]
)
def test_a_range_without_zero_is_widened_to_hold_it(
    low: float, high: float, scale: float, zero_point: int
) -> None:
    grid = Grid(0, 3)
    assert over(low, high, grid).numbers() == AffineNumbers(scale, zero_point, grid)


def test_ties_round_to_even() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    ones = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), Grid(-8, 7))
    assert ones.quantize(halves).tolist() == [0, 2, 2, 0, -2, -2]
    zero_points = [over(-each, 4 - each, Grid(0, 4)).zero_point for each in (0.5, 1.5, 2.5)]
    assert zero_points == [0, 2, 2]


@given(low=floats(2.0**120), high=floats(2.0**120), grid=grids, symmetric=st.booleans())
def test_real_zero_is_exact_for_every_range(
    low: float, high: float, grid: Grid, symmetric: bool
) -> None:
    low, high = sorted((low, high))
    affine = over(low, high, grid, symmetric)
    assert grid.quant_min <= affine.zero_point.item() <= grid.quant_max
    assert affine.scale.dtype == torch.float32
    assert affine.zero_point.dtype == torch.int32
    assert affine.scale.item() > 0
    assert math.isfinite(affine.scale.item())
    assert math.isfinite((1 / affine.scale).item())
    assert affine.round(torch.zeros(())).item() == 0


@given(
    ends=st.tuples(floats(1e6), floats(1e6)).filter(lambda ends: max(map(abs, ends)) > 1e-6),
    share=st.floats(0, 1),
    grid=grids,
    symmetric=st.booleans(),
)
def test_a_value_in_range_moves_by_half_a_step_at_most(
    ends: tuple[float, float], share: float, grid: Grid, symmetric: bool
) -> None:
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    if symmetric and grid.quant_min == 0:
        low = 0.0
    x = torch.tensor(min(low + share * (high - low), high), dtype=torch.float64)
    affine = over(low, high, grid, symmetric)
    most = affine.scale.item() * (0.5 + grid.steps * 2**-23)  # the scale is rounded to float32
    assert abs(affine.error(x).item()) <= most


@given(
    x=st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    ends=st.tuples(floats(2.0**100), floats(2.0**100)),
    grid=grids,
)
def test_every_value_lands_on_the_grid(
    x: list[float], ends: tuple[float, float], grid: Grid
) -> None:
    q = over(min(ends), max(ends), grid).quantize(torch.tensor(x))
    assert ((q >= grid.quant_min) & (q <= grid.quant_max) & (q == q.round())).all()


@given(
    x=st.lists(floats(2.0**100), min_size=1),
    ends=st.tuples(floats(2.0**100), floats(2.0**100)),
    grid=grids,
    symmetric=st.booleans(),
)
def test_what_is_rounded_stays_where_it_is(
    x: list[float], ends: tuple[float, float], grid: Grid, symmetric: bool
) -> None:
    affine = over(min(ends), max(ends), grid, symmetric)
    once = affine.round(torch.tensor(x))
    assert torch.equal(affine.round(once), once)
    assert not affine.error(once).any()


@given(ends=st.tuples(floats(1e6), floats(1e6)), grid=grids, symmetric=st.booleans())
def test_an_unsigned_map_says_the_same(
    ends: tuple[float, float], grid: Grid, symmetric: bool
) -> None:
    affine = over(min(ends), max(ends), grid, symmetric)
    moved, x = affine.unsigned(), torch.linspace(-1e6, 1e6, 101)
    assert moved.grid == Grid(0, grid.steps)
    assert torch.equal(moved.quantize(x), affine.quantize(x) - grid.quant_min)
    assert torch.equal(moved.round(x), affine.round(x))


def test_the_grids_ends_in_steps_from_zero() -> None:
    zero_points = torch.tensor([0, 3, 15], dtype=torch.int32)
    affine = Affine(torch.ones(3), zero_points, Grid(0, 15))
    assert affine.lowest.tolist() == [0, -3, -15]
    assert affine.highest.tolist() == [15, 12, 0]
    values = affine.round(torch.tensor([[-99.0], [99.0]]))
    assert values.tolist() == [affine.lowest.tolist(), affine.highest.tolist()]


def test_values_lie_along_an_axis() -> None:
    values = torch.arange(3)
    assert along_axis(values, -3, 4).shape == (1, 3, 1, 1)
    assert along_axis(values, 0, 2).tolist() == [[0], [1], [2]]
    assert along_axis(torch.tensor(7), None, 3).shape == (1, 1, 1)


def test_each_channel_has_its_own_set() -> None:
    affine = Affine.over(torch.zeros(2), torch.tensor([3.0, 30.0]), Grid(0, 3))
    wide = affine.along(-3, 4)
    assert wide.scale.shape == wide.zero_point.shape == (1, 2, 1, 1)
    assert wide.round(torch.full((1, 2, 1, 1), 11.0)).flatten().tolist() == [3, 10]
    assert affine.map(lambda values: values[1]).numbers() == AffineNumbers(10.0, 0, Grid(0, 3))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_per_channel_equals_channel_by_channel(bits: int, symmetric: bool) -> None:
    weight = torch.randn(3, 2, 4, 4) * torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    grid = Grid.of(bits, signed=True)
    low, high = weight.amin((1, 2, 3)), weight.amax((1, 2, 3))
    affine = Affine.over(low, high, grid, symmetric=symmetric)
    assert affine.scale.shape == affine.zero_point.shape == (3,)
    together = affine.along(0, 4).round(weight)
    for channel in range(3):
        ends = low[channel].item(), high[channel].item()
        alone = over(*ends, grid, symmetric).round(weight[channel])
        assert torch.equal(together[channel], alone)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_zero_width_range_gets_scale_one(signed: bool, symmetric: bool) -> None:
    grid = Grid.of(4, signed=signed)
    affine = over(0.0, 0.0, grid, symmetric)
    assert affine.scale.item() == 1
    assert affine.round(torch.zeros(5)).tolist() == [0.0] * 5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [5.0, -5.0, 0.1, 1e38, -1e-37])
def test_a_range_of_one_value_keeps_it(value: float, bits: int) -> None:
    for symmetric in (False, True):
        affine = over(value, value, Grid.of(bits, signed=True), symmetric)
        assert affine.round(torch.tensor(value)).item() == pytest.approx(value)


def test_a_huge_outlier_takes_the_whole_grid() -> None:
    x = torch.tensor([-1.0, 0.3, 1.0, 1e6])
    back = over(-1.0, 1e6, Grid(0, 255)).round(x)
    assert back[:3].tolist() == [0, 0, 0]
    assert back[3].item() == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1e38, 1e-38, 1e-45])
def test_huge_and_tiny_values_stay_finite(size: float, bits: int, symmetric: bool) -> None:
    x = torch.tensor([-size, -size / 2, 0.0, size / 2, size])
    affine = over(-size, size, Grid.of(bits, signed=True), symmetric)
    assert affine.scale.item() >= FLOAT32_TINY  # below it 1/scale is infinite
    assert torch.isfinite(affine.round(x)).all()
    # a whole step: a symmetric grid lacks its end
    assert affine.error(x).abs().max() <= affine.scale * 1.001


def test_a_clip_of_all_float32_values_has_a_finite_scale() -> None:
    largest = torch.finfo(torch.float32).max
    affine = over(-largest, largest, Grid(0, 255))
    assert affine.scale.item() == pytest.approx(largest * 2 / 255)
    assert affine.zero_point.item() == 128
