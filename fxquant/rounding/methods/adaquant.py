"""AdaQuant: learn a layer's weight, scale and bias freely, not only which way each weight rounds.

    minimize over W', s, b'   ‖f(W̃ x̂ + b') - t‖²,   W̃ = s · clamp(round(W'/s), n, p)

(Hubara et al., "Improving post training neural quantization: layer-wise calibration and integer
programming", 2020, Eq. 1.) Rounding passes gradients straight through: with G = ∂L/∂W̃,

    ∂L/∂W' = G where W'/s is within [n, p], else 0
    ∂L/∂s  = Σ G · (W̃/s - W'/s) where it is within, Σ G · W̃/s where not

the latter as in "Learned step size quantization" (Esser et al., 2020, Eq. 3). The weight moves in
units of its scale, and scales by factors, so that one learning rate fits all layers. An integer may
end anywhere on the grid, where AdaRound's end next to W/s.

The bias is the weight of one more input, which is always 1; tensors are grouped as in
`fxquant.rounding.methods.losses`: (groups, out, in).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.losses import Loss

_BETAS = (0.9, 0.999)
_WEIGHT_RATE, _SCALE_RATE, _BIAS_RATE = 1.0, 0.1, 0.1  # of the learning rate


def learn_freely(
    rounding: Rounding, loss: Loss, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integers minus the zero-point, the scales, and what to add to the bias.

    Args:
        rounding: W, s at the start, and the grid from n to p.
        loss: of a layer with one input more, the last, that is always 1.
        steps: of Adam.
        learning_rate: of the weight, in steps of its grid; falls to 0 along a cosine.

    Returns:
        (groups, out, in), (groups, out, 1) and (groups, out), float32.
    """
    weight, affine = rounding.weight, rounding.affine
    low, high = affine.lowest, affine.highest
    start = affine.scale.clone()
    units = weight / start  # W'/s, s as it was
    one_each = start if rounding.per_channel else start[:1, :1]
    growth = torch.zeros_like(one_each)  # ln of s over what it was
    shift = torch.zeros_like(start)  # of the bias, in units of s
    optimizer = torch.optim.Adam(
        [
            {"params": [units], "lr": learning_rate * _WEIGHT_RATE},
            {"params": [growth], "lr": learning_rate * _SCALE_RATE},
            {"params": [shift], "lr": learning_rate * _BIAS_RATE},
        ],
        betas=_BETAS,
        eps=1e-30,
    )
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        now = start * growth.exp()
        wanted = units * (start / now)
        integers = wanted.round().clamp_(low, high)
        loss.take_turn(step)
        torch.sub(integers * now, weight, out=loss.difference[..., :-1])
        torch.mul(shift, start, out=loss.difference[..., -1:])
        loss.write_gradient()
        gradient = loss.gradient.to(weight.dtype)
        by_weight, by_bias = gradient[..., :-1], gradient[..., -1:]
        within = (wanted >= low) & (wanted <= high)
        units.grad = by_weight * within * start
        by_scale = integers - torch.where(within, wanted, 0)
        growth.grad = (by_weight * by_scale * now).sum_to_size(growth.shape)
        shift.grad = by_bias * start
        optimizer.step()
        rates.step()
    scale = start * growth.exp()
    integers = (units * (start / scale)).round_().clamp_(low, high)
    return integers, scale, (shift * start).squeeze(2)
