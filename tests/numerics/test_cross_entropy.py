"""The range of logits that changes their softmax least."""

import pytest
import torch
from torch import Tensor

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.modules.observers import LogitObserver
from fxquant.numerics.affine import Affine, activation_grid
from fxquant.numerics.cross_entropy import cross_entropy_range
from tests.helpers import Net

SPEC = TensorSpec(bits=3, range="cross_entropy")


def loss(logits: Tensor, low: float, high: float) -> float:
    ends = torch.tensor([low, high], dtype=torch.float64)
    rounded = Affine.over(ends[0], ends[1], activation_grid(low, SPEC)).round(logits.double())
    wanted = torch.softmax(logits.double(), 1)
    return -(wanted * torch.log_softmax(rounded, 1)).sum().item()


def test_no_range_of_a_fine_grid_does_better() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 10) * 3
    low, high = logits.min().item(), logits.max().item()
    found = loss(logits, *cross_entropy_range(logits, low, high, SPEC))
    shares = [step / 25 for step in range(1, 26)]
    best = min(loss(logits, low * one, high * other) for one in shares for other in shares)
    assert found <= best * 1.003
    assert found < loss(logits, low, high)


def test_the_unlikely_classes_are_clipped_and_not_the_likely_ones() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 10)
    logits[:, 0] = -40  # a class that never comes: its exact logit does not matter
    low, high = cross_entropy_range(logits, -40.0, logits.max().item(), SPEC)
    assert low > -12
    assert high > 0.7 * logits.max().item()


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-3.0, 0.0), (0.0, 0.0)])
def test_a_range_on_one_side_of_zero_stays_there(low: float, high: float) -> None:
    torch.manual_seed(0)
    logits = torch.rand(20, 5) * (high - low) + low
    found = cross_entropy_range(logits, low, high, SPEC)
    assert low <= found[0] <= found[1] <= high


def test_a_recipe_can_quantize_the_outputs() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.fc(x), fc=torch.nn.Linear(8, 5))
    x = torch.randn(64, 8)
    recipe = Recipe.minmax(logits=SPEC)
    quantized = fxquant.quantize(model, torch.split(x, 16), recipe, progress=False)
    with torch.no_grad():
        assert len(quantized(x).unique()) <= 8
    assert "3 bits cross_entropy" in fxquant.text(quantized)
    assert "logit" not in fxquant.text(fxquant.prepare(model, "minmax"))


def test_maps_of_classes_have_them_on_axis_1() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.conv(x), conv=torch.nn.Conv2d(3, 5, 1))
    recipe = Recipe.minmax(logits=SPEC)
    prepared = fxquant.prepare(model, recipe)
    fxquant.calibrate(prepared, [torch.randn(4, 3, 6, 6)] * 3, progress=False)
    (observer,) = [each for each in prepared.modules() if isinstance(each, LogitObserver)]
    assert observer.rows.shape == (3 * 144, 5)
    with torch.no_grad():
        assert len(fxquant.convert(prepared)(torch.randn(1, 3, 6, 6)).unique()) <= 8
