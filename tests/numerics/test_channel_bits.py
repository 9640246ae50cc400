"""Wide channels get more bits, and all together no more levels than before."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, RecipeError, TensorSpec
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.channel_bits import channel_bits, uneven_affine
from fxquant.numerics.decibels import sqnr
from tests.helpers import outputs


def expected_error(ranges: Tensor, bits: Tensor) -> float:
    return float((ranges.double().square() / 4.0 ** bits.double()).sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_levels_keep_to_the_quota_and_the_error_falls(bits: int, seed: int) -> None:
    ranges = torch.randn(64, generator=torch.Generator().manual_seed(seed)).mul(1.5).exp()
    found = channel_bits(ranges, bits)
    assert (2**found).sum() <= 64 * 2**bits
    assert found.min() >= 1
    assert found.max() <= 8
    assert torch.equal(found.argsort(stable=True).sort().values, torch.arange(64))
    assert (found[ranges.argsort()].diff() >= -1).all()  # wider never gets much less
    if bits < 8:  # nothing is above 8
        assert expected_error(ranges, found) < 0.8 * expected_error(ranges, torch.full((64,), bits))


def test_is_near_the_best_of_all_allocations() -> None:
    ranges = torch.tensor([9.0, 3.0, 1.0, 0.2])
    every = torch.tensor(list(itertools.product(range(1, 9), repeat=4)))
    within = every[(2**every).sum(1) <= 4 * 2**4]
    best = min(expected_error(ranges, bits) for bits in within)
    assert expected_error(ranges, channel_bits(ranges, 4)) < 1.5 * best


def test_equal_channels_and_empty_ones_get_what_was_asked() -> None:
    assert channel_bits(torch.full((7,), 3.0), 4).tolist() == [4] * 7
    assert channel_bits(torch.zeros(7), 4).tolist() == [4] * 7
    assert channel_bits(torch.tensor([5.0, 0.0]), 2).tolist() == [2, 1]


def test_each_channel_has_a_grid_of_its_own() -> None:
    low, high = torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([2.0, 3.0, 1.0])
    affine, last = uneven_affine(low, high, torch.tensor([2, 4, 1]))
    assert last.tolist() == [3, 15, 1]
    torch.testing.assert_close(affine.scale, torch.tensor([1.0, 0.2, 1.0]))
    assert affine.zero_point.tolist() == [1, 0, 0]
    assert affine.grid == Grid(0, 15)


def prepared(spec: TensorSpec) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)
    with torch.no_grad():
        first.weight *= torch.logspace(-1.5, 1.5, 16)[:, None, None, None]
        second.weight /= torch.logspace(-1.5, 1.5, 16)[None, :, None, None] ** 0.5
    model, x = nn.Sequential(first, nn.ReLU(), second), torch.randn(32, 3, 12, 12)
    gm = fxquant.prepare(model, Recipe(activations=spec))
    return model, fxquant.calibrate(gm, [x]), x


def test_a_model_with_wild_channels_loses_less() -> None:
    found = []
    for allocated in (False, True):
        spec = TensorSpec(bits=3, per_channel=True, range="aciq", bit_allocation=allocated)
        model, calibrated, x = prepared(spec)
        quantized = fxquant.convert(calibrated)
        found.append(sqnr(outputs(model, x), outputs(quantized, x)))
        quantizer = next(
            each
            for each in quantized.modules()
            if isinstance(each, FakeQuantize) and len(each.scale) == 16
        )
        assert (quantizer.channel_max is not None) == allocated
    assert found[1] > found[0] + 0.3
    assert "over 16 channels of 1 to " in fxquant.text(quantized)
    y = quantizer(torch.full((1, 16, 1, 1), 1e9)).flatten()
    assert quantizer.channel_max is not None
    torch.testing.assert_close(y, (quantizer.channel_max - quantizer.zero_point) * quantizer.scale)


def test_gradients_stop_where_a_channel_clips() -> None:
    last = torch.tensor([1, 3], dtype=torch.int32)
    affine = Affine(torch.ones(2), torch.zeros(2, dtype=torch.int32), Grid(0, 3))
    quantizer = FakeQuantize(affine, TensorSpec(), 0.0, -3, last)
    x = torch.full((1, 2, 1, 1), 2.2, requires_grad=True)
    y = quantizer(x)
    assert y.flatten().tolist() == [1.0, 2.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 1.0]


def test_saving_loading_and_the_standard_operators(tmp_path: object) -> None:
    spec = TensorSpec(bits=3, per_channel=True, range="aciq", bit_allocation=True)
    _, calibrated, x = prepared(spec)
    quantized = fxquant.convert(calibrated)
    fxquant.save(quantized, f"{tmp_path}/model.fxq")
    assert torch.equal(outputs(fxquant.load(f"{tmp_path}/model.fxq"), x), outputs(quantized, x))
    exposed = fxquant.to_qdq(quantized)
    assert torch.equal(outputs(exposed, x), outputs(quantized, x))


@pytest.mark.parametrize(
    "options",
    [{}, {"per_channel": True, "dynamic": True}, {"per_channel": True, "symmetric": True}],
    ids=str,
)
def test_says_what_it_needs(options: dict[str, bool]) -> None:
    with pytest.raises(RecipeError, match="bit_allocation=True with per_channel="):
        Recipe(activations=TensorSpec(range="aciq", bit_allocation=True, **options))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="weights: bit_allocation=True is for activations"):
        Recipe(weights=TensorSpec(bit_allocation=True))
