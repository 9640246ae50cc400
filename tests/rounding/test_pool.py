"""A pool draws rows of all batches, and sets samples aside."""

import pytest
import torch
from torch import nn

from fxquant import CalibrationError, Reconstruction
from fxquant.rounding.pool import RowPool
from fxquant.rounding.rows import grouped_weight


def make_pool(layer: nn.Conv2d, samples: int, pool_rows: int = 32768) -> RowPool:
    return RowPool("conv", layer, samples, Reconstruction(pool_rows=pool_rows), 0)


def test_rows_reproduce_the_float_layer() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    pool = make_pool(layer, 32, pool_rows=256)
    for _ in range(4):
        x = torch.randn(8, 3, 6, 6)
        pool.add(x, layer(x).detach().relu())
    weight = grouped_weight(layer, layer.weight.detach())
    learned_from, judged = pool.rows(
        weight, layer.bias.detach() if layer.bias is not None else None
    )
    for rows in (learned_from, judged):
        torch.testing.assert_close(rows.outputs.relu(), rows.targets, rtol=1e-5, atol=1e-5)
    assert len(learned_from) == 8 * 28
    assert len(judged) == 8 * 4  # every 8th sample


def test_samples_set_aside_are_not_learned_from() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    x = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 1, 4, 4)
    pool = make_pool(layer, 64, pool_rows=512)
    for batch in torch.split(x, 10):
        pool.add(batch, batch)
    learned_from, judged = pool.rows(torch.ones(1, 1, 1), None)
    seen = set(learned_from.inputs.flatten().tolist())
    held_out = set(judged.inputs.flatten().tolist())
    assert held_out == {float(number) for number in range(7, 64, 8)}
    assert not seen & held_out
    assert len(seen | held_out) == 64


@pytest.mark.parametrize(("samples", "positions"), [(1, 1), (1, 2), (3, 1), (7, 3)])
def test_few_samples_still_give_rows_on_both_sides(samples: int, positions: int) -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    pool = make_pool(layer, samples)
    x = torch.randn(samples, 1, 1, positions)
    pool.add(x, x)
    learned_from, judged = pool.rows(torch.ones(1, 1, 1), None)
    assert len(learned_from) > 0
    assert len(judged) > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_values_are_an_error_that_names_the_layer(value: float) -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    for what, at in (("input", 0), ("float output", 1)):
        pool = make_pool(layer, 4)
        tensors = [torch.ones(4, 1, 2, 2), torch.ones(4, 1, 2, 2)]
        tensors[at] = tensors[at] * value
        pool.add(*tensors)
        with pytest.raises(CalibrationError, match=f"conv: NaN or infinity in its {what}"):
            pool.rows(torch.ones(1, 1, 1), None)


def test_the_pool_of_a_wide_depthwise_layer_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxquant.rounding.pool._MAX_BYTES", 1 << 20)
    layer = nn.Conv2d(96, 96, 3, groups=96)
    pool = make_pool(layer, 64)
    x = torch.randn(64, 96, 16, 16)
    pool.add(x, layer(x).detach())
    learned_from, judged = pool.rows(grouped_weight(layer, layer.weight.detach()), None)
    assert (len(learned_from) + len(judged)) * 96 * 9 * 4 <= 1.3 * (1 << 20)
