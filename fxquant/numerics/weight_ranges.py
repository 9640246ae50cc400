"""From a weight to the range of each of its rows: one an output channel, or one for all of it.

The methods are those of `fxquant.numerics.activation_ranges`, with the values themselves at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.numerics.aciq import clip_range
from fxquant.numerics.affine import Affine, Grid
from fxquant.recipe.spec import TensorSpec

_BLOCK = 1 << 18  # values: what is tried on them stays in the cache
_CLIPPED = 0.5001  # of a step: what is off by more


def weight_range(rows: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) of each row of a weight, float64, (rows,) each.

    Args:
        rows: (rows, values): a row for each output channel, or one row for the whole tensor.
        spec: how to choose it.
    """
    low, high = (bound.to(torch.float64) for bound in torch.aminmax(rows, dim=1))
    if spec.range == "percentile":
        outside = (1 - spec.percentile / 100) / 2
        return _quantile(rows, outside), _quantile(rows, 1 - outside)
    if spec.range == "mse":
        size = max(1, _BLOCK // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
        parts = zip(*(torch.split(each, size) for each in (rows, low, high)), strict=True)
        found = [_least_error_rows(some, least, most, spec) for some, least, most in parts]
        return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])
    if spec.range == "aciq":
        return _aciq_rows(rows.to(torch.float64), low, high, spec)
    return low, high


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Return the quantile of each row; `torch.quantile` refuses more than 2^24 values."""
    rank = min(rows.shape[1], max(1, math.ceil(share * rows.shape[1])))
    return rows.kthvalue(rank, dim=1).values.to(torch.float64)


def _aciq_rows(rows: Tensor, low: Tensor, high: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=1)
    deviation = (rows - mean[:, None]).abs().mean(dim=1)
    sigma = rows.std(dim=1, correction=0)
    best_low, best_high, least = low, high, torch.full_like(low, torch.inf)
    if spec.distribution == "auto":  # a channel that none of them fits is better not clipped
        least = _row_errors(rows, low, high, spec)
    for distribution, spread in (("laplace", deviation), ("gauss", sigma)):
        if spec.distribution not in ("auto", distribution):
            continue
        wanted_low, wanted_high = clip_range(
            mean, spread.clamp(min=1e-30), spec, distribution, fused_relu=False
        )
        flat = spread <= 0  # a channel of one repeated value needs no clip
        wanted_low = torch.where(flat, low, torch.maximum(low, wanted_low))
        wanted_high = torch.where(flat, high, torch.minimum(high, wanted_high))
        errors = _row_errors(rows, wanted_low, wanted_high, spec)
        better = errors < least
        best_low = torch.where(better, wanted_low, best_low)
        best_high = torch.where(better, wanted_high, best_high)
        least = torch.minimum(errors, least)
    return best_low, best_high


def _row_errors(rows: Tensor, low: Tensor, high: Tensor, spec: TensorSpec) -> Tensor:
    """Return the summed squared error of quantizing each row over its range: (rows,)."""
    grid = Grid.of(spec.bits, signed=True)
    affine = Affine.over(low[:, None], high[:, None], grid, symmetric=spec.symmetric)
    units = rows / affine.scale
    noise = torch.round(units).clamp_(affine.lowest, affine.highest).sub_(units)
    error: Tensor = torch.linalg.vector_norm(noise, dim=1).square_()
    if spec.clip_weight != 1:
        clipped = F.hardshrink(noise, _CLIPPED)
        error += torch.linalg.vector_norm(clipped, dim=1).square_().mul_(spec.clip_weight - 1)
    return error.mul_(affine.scale.to(error.dtype).square().squeeze(1))


def _least_error_rows(
    rows: Tensor, low: Tensor, high: Tensor, spec: TensorSpec
) -> tuple[Tensor, Tensor]:
    """Return each row's range of least squared error among common shrinkings of its ends."""
    best = torch.ones_like(low)
    least = _row_errors(rows, low, high, spec)
    coarse = [step / 40 for step in range(39, 4, -1)] + [0.1 * 0.8**step for step in range(1, 21)]
    for factors in (coarse, [1 + step / 100 for step in range(-10, 11)]):
        center = best
        for factor in factors:
            shrunk = (center * factor).clamp(max=1)
            errors = _row_errors(rows, low * shrunk, high * shrunk, spec)
            best = torch.where(errors < least, shrunk, best)
            least = torch.minimum(errors, least)
    return torch.maximum(low * best, low), torch.minimum(high * best, high)
