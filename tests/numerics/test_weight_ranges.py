"""The range of a weight's row is the best of all that are tried, however rows are grouped."""

from dataclasses import replace

import pytest
import torch

from fxquant import TensorSpec
from fxquant.numerics import weight_ranges
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.weight_ranges import weight_range

SPEC = TensorSpec(bits=4, symmetric=True, per_channel=True, range="mse", clip_weight=2.0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_in_blocks_have_the_ranges_of_rows_together(
    monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    rows, spec = torch.randn(23, 70), replace(SPEC, symmetric=symmetric)
    together = weight_range(rows, spec)
    for block in (1, 150, 700):  # values: one row, two, ten
        monkeypatch.setattr(weight_ranges, "_BLOCK", block)
        assert all(map(torch.equal, weight_range(rows, spec), together))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip_weight", [1.0, 2.0])
def test_no_shrunk_range_has_less_error(symmetric: bool, clip_weight: float) -> None:
    rows = torch.randn(6, 400) ** 3 + 0.2
    spec = replace(SPEC, symmetric=symmetric, clip_weight=clip_weight)

    def error(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        grid = Grid.of(4, signed=True)
        affine = Affine.over(low[:, None], high[:, None], grid, symmetric=symmetric)
        noise = affine.error(rows)
        is_clipped = noise.abs() > 0.5001 * affine.scale
        return (torch.where(is_clipped, clip_weight, 1.0) * noise.square()).sum(1)

    found = error(*weight_range(rows, spec))
    whole = rows.amin(1).double(), rows.amax(1).double()
    for factor in (1.0, 0.9, 0.75, 0.5, 0.3):
        assert (found <= error(*(factor * each for each in whole)) * 1.00001).all()
    assert (found < error(*whole)).all()
