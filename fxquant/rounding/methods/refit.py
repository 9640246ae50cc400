"""The float layer that serves quantized inputs best: what rounding is to come close to.

A layer that is learned behind quantized ones gets x̂ in place of x, and its targets t are what the
float network computes of x. To make up for that is a regression,

    minimize over ΔW, Δb   E[f'(y)² ((W + ΔW) x̂ + b + Δb - t)²] + μ ‖ΔW‖²,   y = W x̂ + b

whose answer rounding starts from, W' = W + ΔW, and should come close to: its targets are f(W' x̂ +
b'). To learn t itself would be to learn, too, what x̂ - x is by chance in the samples at hand; with
a few hundred images, behind forty layers, that is much of what is learned. Only where the whole of
the regression holds on other samples (`_CONFIRMED`) targets stay t.

How much of the regression holds is seen on samples that are set aside: μ is the one of `_SHARES` of
the inputs' mean square that is best on them, ∞ (Δb alone) included, and so is nothing at all. All
outputs of a group share E[x̂ x̂ᵀ]: f'(y)² is taken for its mean there. A weight that is 0 stays 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation
from fxquant.rounding.methods.losses import Rows, means_over_ranks
from fxquant.rounding.methods.moments import InputMoments
from fxquant.streaming.distributed import (
    copy_from_rank,
    gather_objects,
    num_ranks,
    rank,
    sum_over_ranks,
)

_SHARES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)
_CONFIRMED = 0.03  # a μ so small leaves nothing of the regression out
_MOST_ROWS = 8192  # of those to learn from, and as many of those set aside, of all ranks together
_LEAST_OPEN = 0.05  # of what the activation lets through; more would be noise
_EXACT = 1e-6  # Σ (f(y) - t)² / Σ t²: the inputs are the float network's


@dataclass(frozen=True, eq=False)
class Refit:
    """A layer as it should be on its inputs."""

    before: Rounding
    """With W."""
    rounding: Rounding
    """With W'."""
    shift: Tensor
    """Δb, (groups, out)."""
    share: float | None
    """μ as a share of the mean of E[x̂²]; None: ΔW is 0."""

    @property
    def change(self) -> Tensor:
        """ΔW, (groups, out, in)."""
        return self.rounding.weight - self.before.weight

    @property
    def is_confirmed(self) -> bool:
        """Whether t is to be learned, not what the layer computes with W' and b'."""
        return self.share is not None and self.share <= _CONFIRMED

    def rows(self, rows: Rows, activation: Activation) -> Rows:
        """Return rows of the layer as it should be, with what is to be learned as targets."""
        outputs = torch.bmm(rows.inputs, self.change.mT).add_(rows.outputs)
        outputs.add_(self.shift[:, None])
        return Rows(
            rows.inputs, outputs, rows.targets if self.is_confirmed else activation(outputs)
        )


def refit(
    rounding: Rounding,
    rows: Rows,
    judged: Rows,
    activation: Activation,
    dtype: torch.dtype = torch.float32,
) -> Refit:
    """Return the layer that serves the inputs best, the same on all ranks.

    Args:
        rounding: the layer's own weight.
        rows: to learn from.
        judged: set aside.
        activation: f.
        dtype: to judge in: that of products with ΔW.
    """
    unchanged = Refit(rounding, rounding, torch.zeros_like(rounding.weight[..., 0]), None)
    rows, judged = (_some(each) for each in (rows, judged))
    judge = _Judge(replace(judged, inputs=judged.inputs.to(dtype)), activation)
    best, least = unchanged, judge.error(unchanged)
    if least <= _EXACT * judge.signal:
        return unchanged
    for share, found in _Problem(rows, activation).solutions(rounding):
        error = judge.error(found)
        if error < least:
            best, least = found, error
        elif best.share is not None or share == _SHARES[2]:
            break  # it has a single minimum
    return best


class _Problem:
    """The regression, on the moments of all ranks' rows."""

    def __init__(self, rows: Rows, activation: Activation) -> None:
        error, slope = torch.empty_like(rows.outputs), torch.empty_like(rows.outputs)
        activation.write_gradient(rows.outputs, rows.targets, error)
        activation.write_gradient(rows.outputs, activation(rows.outputs) - 1, slope)
        moments = InputMoments.of(rows, error)
        (is_open,) = means_over_ranks(rows, slope.square_().sum(dim=1))
        is_open.clamp_(min=_LEAST_OPEN)
        self._inputs, self._gram = moments.inputs, moments.gram
        self._error = -moments.errors / is_open  # E[t - y] where f lets through, (groups, out)
        self._cross = -moments.cross / is_open[..., None]

    def solutions(self, rounding: Rounding) -> Iterator[tuple[float | None, Refit]]:
        """Yield shares and layers, from least to most of the regression; each rank solves some."""
        yield None, Refit(rounding, rounding, self._error, None)
        for start in range(0, len(_SHARES), num_ranks()):
            shares = _SHARES[start : start + num_ranks()]
            own = self._solve(rounding, shares[min(rank(), len(shares) - 1)])
            for number, share in enumerate(shares):
                yield share, _of_rank(number, own)

    def _solve(self, rounding: Rounding, share: float) -> Refit:
        """Return the layer for μ = share · mean E[x̂²]; that with ΔW = 0, if none is found."""
        power = self._gram.diagonal(dim1=1, dim2=2)
        mean = power.mean(dim=1, keepdim=True).clamp(min=1e-30)
        damped = self._gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(share * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if torch.any(failed):
            return Refit(rounding, rounding, self._error, None)
        change = torch.cholesky_solve(self._cross.mT, factor).mT * (rounding.weight != 0)
        shift = self._error - torch.bmm(change, self._inputs[:, :, None]).squeeze(2)
        fitted = replace(rounding, weight=rounding.weight + change)
        return Refit(rounding, fitted, shift, share)


def _of_rank(number: int, own: Refit) -> Refit:
    """Return what a rank has found."""
    if num_ranks() == 1:
        return own
    share = gather_objects(own.share)[number]
    weight, shift = (
        each.clone(memory_format=torch.contiguous_format)
        for each in (own.rounding.weight, own.shift)
    )
    copy_from_rank(number, weight, shift)
    return Refit(own.before, replace(own.before, weight=weight), shift, share)


class _Judge:
    """The error of layers on rows set aside, over all ranks."""

    def __init__(self, rows: Rows, activation: Activation) -> None:
        self._rows, self._activation = rows, activation
        self.signal = 0.0

    def error(self, found: Refit) -> float:
        """Return Σ (f(y) - t)²."""
        sums = torch.stack(self._rows.error(found.change, self._activation, found.shift))
        sum_over_ranks(sums)
        error, self.signal = sums.tolist()
        return float(error)


def _some(rows: Rows) -> Rows:
    every = max(1, -(-len(rows) * num_ranks() // _MOST_ROWS))
    return Rows(*(each[:, ::every] for each in (rows.inputs, rows.outputs, rows.targets)))
