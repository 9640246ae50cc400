"""AdaRound: learn whether each weight is rounded down or up (Nagel et al., 2020; report, II.B).

    minimize over V   ‖f(W x) - f(W̃ x̂)‖² + λ Σ 1 - |2 h(V) - 1|^β            (18), (21)
    W̃ = s · clamp(⌊W/s⌋ + h(V), n, p)                                        (19)
    h(V) = clamp(σ(V)(ζ - γ) + γ, 0, 1),  ζ = 1.1, γ = -0.1                  (20)

V starts where h(V) = W/s - ⌊W/s⌋ (`fxquant.rounding.methods.soft_rounding`); Adam; no regulariser
during the warm start, then β falls linearly.

An output channel's error is measured in units of s² E[x̂²], so that λ weighs the same whatever the
scale of weights and inputs is; the paper's λ does not.

The data's part of the loss is `fxquant.rounding.methods.losses`'; tensors are grouped as there:
(groups, out, in).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.losses import Loss
from fxquant.rounding.methods.soft_rounding import (
    BETA1,
    BETA2,
    EPS,
    GAMMA,
    STRETCH,
    Schedule,
    SoftWeight,
)

_NORMAL = 1e-18  # keeps Adam's moments out of the denormals, which cost 100 cycles each
_BLOCK = 1 << 18  # elements: what a step reads and writes of them stays in the cache


def learn_rounding(rounding: Rounding, loss: Loss, schedule: Schedule) -> Tensor:
    """Return the learned integers minus the zero-point, (groups, out, in) in float32.

    Args:
        rounding: W, s, and the grid from n to p.
        loss: the data's part of the loss.
        schedule: the steps to take.

    A weight that is exactly on the grid stays there, so pruned weights stay zero.
    """
    optimizer = RoundingOptimizer(rounding, loss, schedule)
    optimizer.run()
    return optimizer.integers()


class RoundingOptimizer:
    """Adam on V. Everything is allocated here; a step allocates nothing and waits for nothing.

    What is done element by element is done block by block, so that it stays in the cache, and in
    terms of u = 2h - 1 = clamp(w, -1, 1),  w = 2 (σ(V)(ζ - γ) + γ) - 1:
    λ ∂/∂h (1 - |u|^β) = -2λβ · u |u|^(β-2).
    """

    def __init__(self, rounding: Rounding, loss: Loss, schedule: Schedule) -> None:
        self._loss, self._schedule = loss, schedule
        weight, scale = rounding.weight, rounding.affine.scale
        self._soft = SoftWeight(weight, rounding.affine)
        self.v = self._soft.v
        power = loss.input_power.to(weight.dtype)[:, None, None]
        inputs = weight.shape[2]
        columns = {
            "v": self.v,
            "offset": (self._soft.floor + 0.5) * scale - weight,
            "half_scale": scale / 2,
            "gain": torch.where(power > 0, STRETCH / (scale * power), 0.0),
            "sigmoid": torch.empty_like(weight),
            "mean": torch.zeros_like(weight),
            "square": torch.full_like(weight, EPS * EPS),
            "difference": loss.difference,
            "gradient": loss.gradient,
        }
        size = max(1, _BLOCK // inputs)
        scratch = weight.new_empty(4, min(size, weight[..., 0].numel()), inputs)
        self._adam_factor = weight.new_empty(())
        self._blocks = [
            _Block(
                dict(zip(columns, parts, strict=True)),
                scratch,
                self._adam_factor,
                schedule.regularization,
                alone=len(self.v) * self.v.shape[1] <= size,
            )
            for parts in zip(
                *(torch.split(each.view(-1, each.shape[2]), size) for each in columns.values()),
                strict=True,
            )
        ]

    def run(self) -> None:
        """Take all steps."""
        take_step = _Replay(self._step).take if self._loss.can_replay else self._step
        adam = self._schedule.adam().to(self.v.device).unbind()
        for number, beta in enumerate(self._schedule.betas()):
            self._loss.take_turn(number)
            self._adam_factor.copy_(adam[number])
            take_step(beta)

    def _step(self, beta: int) -> None:
        """Take one step on what the loss has chosen."""
        for block in self._blocks:
            block.write_difference()
        self._loss.write_gradient()
        for block in self._blocks:
            block.write_gradient(beta)
            block.descend()

    def gradient(self, step: int, beta: int) -> Tensor:
        """Return ∂(18)/∂V, with channels' errors in units of s² E[x̂²]."""
        self._loss.take_turn(step)
        for block in self._blocks:
            block.write_difference()
        self._loss.write_gradient()
        parts = []
        for block in self._blocks:
            block.write_gradient(beta)
            parts.append(block.step_gradient.clone())
        return torch.cat(parts).view_as(self.v)

    def integers(self) -> Tensor:
        """Return ⌊W/s⌋ + [h(V) ≥ ½], clamped."""
        return self._soft.integers()


class _Block:
    """Some output channels: what is done with each of their weights.

    Args:
        columns: for these channels, (channels, in) or (channels, 1): V, W̃ - W where u = 0, s/2, the
            gradient's unit, σ(V), Adam's moments, and the loss's two tensors.
        scratch: that all blocks share: (4, channels, in).
        adam_factor: of this step of Adam: ().
        regularization: λ.
        alone: no other block uses the scratch in between.
    """

    def __init__(
        self,
        columns: dict[str, Tensor],
        scratch: Tensor,
        adam_factor: Tensor,
        regularization: float,
        alone: bool,
    ) -> None:
        self._columns = columns
        self._adam_factor = adam_factor
        self._alone = alone and columns["difference"].dtype == torch.float32
        self._factor = -2 * regularization * STRETCH
        self._w, self._u, self._power, self.step_gradient = scratch[:, : len(columns["v"])].unbind()
        self._start = torch.tensor(2 * GAMMA - 1, device=scratch.device)

    def write_difference(self) -> None:
        """Write W̃ - W for the loss."""
        own = self._columns
        torch.sigmoid(own["v"], out=own["sigmoid"])
        self._write_u()
        if own["difference"].dtype == self._u.dtype:
            torch.addcmul(own["offset"], own["half_scale"], self._u, out=own["difference"])
        else:
            torch.addcmul(own["offset"], own["half_scale"], self._u, out=self._w)
            own["difference"].copy_(self._w)

    def _write_u(self) -> None:
        torch.add(self._start, self._columns["sigmoid"], alpha=2 * STRETCH, out=self._w)
        torch.clamp(self._w, -1, 1, out=self._u)

    def write_gradient(self, beta: int) -> None:
        """Write ∂/∂V of the loss's gradient and, unless β is 0, of the regulariser."""
        own, gradient = self._columns, self.step_gradient
        torch.mul(own["gradient"], own["gain"], out=gradient)
        if not self._alone:
            self._write_u()
        if beta:
            self._raise_u(beta - 2)
            gradient.add_(self._u, alpha=self._factor * beta)
        torch.ops.aten.hardtanh_backward(gradient, self._w, -1, 1, grad_input=gradient)
        torch.ops.aten.sigmoid_backward(gradient, own["sigmoid"], grad_input=gradient)

    def _raise_u(self, exponent: int) -> None:
        """Make u · |u|^exponent of u, for even exponents."""
        u, power, half = self._u, self._power, exponent // 2
        if half:
            torch.mul(u, u, out=power)
        while half:
            if half % 2:
                u.mul_(power)
            half //= 2
            if half:
                power.mul_(power)

    def descend(self) -> None:
        """Take a step of Adam."""
        own, gradient, update = self._columns, self.step_gradient, self._power
        gradient.add_(_NORMAL)
        own["mean"].lerp_(gradient, 1 - BETA1)
        own["square"].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        torch.rsqrt(own["square"], out=update)
        update.mul_(self._adam_factor)
        own["v"].addcmul_(own["mean"], update)


class _Replay:
    """Take a step on a GPU by replaying the graph of its kernels, one graph for each β.

    All that changes from step to step lies in tensors of fixed places.
    """

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step
        self._warm: set[int] = set()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def take(self, beta: int) -> None:
        """Take one step."""
        if beta in self._graphs:
            self._graphs[beta].replay()
        elif beta not in self._warm:  # libraries set themselves up in the first step
            self._warm.add(beta)
            self._step(beta)
        else:
            graph = self._graphs[beta] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, and computes nothing
                self._step(beta)
            graph.replay()
