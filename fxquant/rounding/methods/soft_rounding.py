"""AdaRound's relaxation of a rounding, and its schedule (report, II.B; Nagel et al., 2020).

    h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1)

decides between rounding down, h = 0, and up, h = 1. ζ and γ stretch the sigmoid, so that both ends
are reached; there the gradient is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.affine import Affine
from fxquant.recipe.reconstruction import Reconstruction

ZETA, GAMMA = 1.1, -0.1
STRETCH = ZETA - GAMMA
_LONG = 1000  # steps, which λ is given for
_FIXED = -20.0  # a V whose h is 0 and whose gradient is exactly 0
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Schedule:
    """How V is optimized: see `fxquant.Reconstruction`."""

    steps: int
    learning_rate: float
    regularization: float
    warm_start: float
    beta: tuple[float, float]

    @classmethod
    def of(cls, options: Reconstruction) -> Schedule:
        """Return the schedule that a recipe asks for.

        In fewer than 1,000 steps the regulariser weighs more: λ times the steps stays what it is in
        1,000. Else many weights would be undecided at the end, and what rounds them then is chance.
        """
        return cls(
            options.steps,
            options.learning_rate,
            options.regularization * max(1.0, _LONG / options.steps),
            options.warm_start,
            options.beta,
        )

    def betas(self) -> list[int]:
        """Return β of each step, 0 during the warm start.

        In even numbers, so that powers are a few products: `torch.pow` takes ten times as long.
        """
        warm = self.warm_start * self.steps
        fall = self.beta[1] - self.beta[0]
        betas = [
            self.beta[0] + fall * (step - warm) / max(self.steps - warm, 1)
            for step in range(self.steps)
        ]
        return [
            0 if step < warm else max(2, 2 * round(beta / 2)) for step, beta in enumerate(betas)
        ]

    def adam(self) -> Tensor:
        """Return the factor -c of each step's update, (steps,).

        V -= lr · (m / (1-β₁ᵗ)) / √(v / (1-β₂ᵗ)) = -c · m / √v; v starts at ε², instead of ε being
        added to the root, which saves two passes over all weights.
        """
        step = torch.arange(1, self.steps + 1, dtype=torch.float64)
        root = (1 - BETA2**step).sqrt()
        return (-self.learning_rate * root / (1 - BETA1**step)).to(torch.float32)


class SoftWeight:
    """A weight between the two grid points next to it, s · (⌊W/s⌋ + h(V)).

    V starts where h(V) = W/s - ⌊W/s⌋. What is exactly on the grid, or outside of it, stays where it
    is: so pruned weights stay zero.

    Args:
        weight: W, float32, of any shape.
        affine: s, and the grid; it broadcasts against `weight`.
    """

    def __init__(self, weight: Tensor, affine: Affine) -> None:
        scale, low, high = affine.scale, affine.lowest, affine.highest
        whole = torch.floor(weight / scale)
        fraction = (weight / scale - whole).clamp_(0, 1)
        is_free = (whole >= low) & (whole < high) & (fraction > 0)
        self.scale = scale
        self.floor = torch.clamp(whole, low, high)
        self.v = torch.where(is_free, initial_v(fraction), _FIXED)

    def soft(self) -> Tensor:
        """Return W̃ with soft roundings; autograd sees through it to V."""
        return (self.floor + soft_rounding(self.v)) * self.scale

    def undecided(self, beta: int) -> Tensor:
        """Return the regulariser 1 - |2 h(V) - 1|^β of each weight; β is even."""
        u = soft_rounding(self.v).mul(2).sub(1)
        return 1 - u.square() ** (beta // 2)

    def integers(self) -> Tensor:
        """Return ⌊W/s⌋ + [h(V) ≥ ½], minus the zero-point."""
        return self.floor + (soft_rounding(self.v) >= 0.5)


def initial_v(fraction: Tensor) -> Tensor:
    """Return V with h(V) = fraction, for fractions in [0, 1)."""
    return torch.logit((fraction - GAMMA) / STRETCH)


def soft_rounding(v: Tensor) -> Tensor:
    """Return h(V), Eq. (20)."""
    return (torch.sigmoid(v) * STRETCH + GAMMA).clamp(0, 1)
