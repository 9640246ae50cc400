"""Round a layer's weight on the Gram matrix of its inputs, without gradients.

    minimize over integers Q   E‖D x̂ + d + e‖²,   D = s·Q - W                                (1)

e is the layer's error with the float weight on the quantized network's inputs x̂, d what the bias
gives way by. With H the covariance of x̂ and C that of e and x̂, d = -E[e] - D E[x̂] leaves

    tr(D H Dᵀ) + 2 tr(C Dᵀ)                                                                  (2)

1. Its free minimum is W - C H⁻¹. Rounding starts there, input by input; what rounding one input
   costs, those behind it make up for (GPTQ: Frantar et al., "GPTQ: accurate post-training
   quantization for generative pre-trained transformers", 2023, Eqs. 2-3).
2. Then each input's integers are set anew to the best of all, the others held fixed, until none
   moves: coordinate descent on (2). An integer may end anywhere on the grid, not only next to
   W / s.

3. The scale that fits these integers best is known in closed form, s = q (H Wᵀ - Cᵀ) / q H qᵀ for
   the integers q of an output; rounding once more with it can only help.

An activation function enters by its slope where the float weight puts the output: e is
(f(y) - t) f'(y).

All tensors are grouped: weights (groups, out, in), H (groups, in, in), C (groups, out, in).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.rounding.grouped_layer import Rounding

_DAMPING = 0.01  # of the mean variance: inputs that never vary still have a place in H⁻¹
_BLOCK = 128  # inputs that are rounded before the others hear of it
_FEW = 1e-3  # of the weights: a sweep that moves no more is the last


@dataclass(frozen=True, eq=False)
class GramProblem:
    """What is minimized, and over what.

    Args:
        rounding: W, and what its integers may be.
        gram: H, (groups, in, in).
        cross: C, (groups, out, in).
    """

    rounding: Rounding
    gram: Tensor
    cross: Tensor

    def ordered(self) -> tuple[GramProblem, Tensor]:
        """Return the problem damped, inputs of most variance first, and that order."""
        gram = _damped(self.gram)
        order = gram.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True)
        rounding = replace(self.rounding, weight=self.rounding.weight[:, :, order])
        gram = gram[:, order][:, :, order]
        return GramProblem(rounding, gram, self.cross[:, :, order]), order

    def loss(self, integers: Tensor, scale: Tensor) -> Tensor:
        """Return (2) of each output, or of all that share a scale: it has the scale's shape."""
        difference = integers * scale - self.rounding.weight
        per_weight = (torch.bmm(difference, self.gram) + 2 * self.cross) * difference
        return self._per_scale(per_weight)

    def best_scale(self, integers: Tensor, scale: Tensor) -> Tensor:
        """Return the scale of least loss for these integers; `scale` where none is positive."""
        product = torch.bmm(self.rounding.weight, self.gram) - self.cross
        wanted = self._per_scale(integers * product)
        power = self._per_scale(integers * torch.bmm(integers, self.gram))
        usable = (wanted > 0) & (power > 0)
        return torch.where(usable, wanted / power, scale)

    def _per_scale(self, per_weight: Tensor) -> Tensor:
        sums = per_weight.sum(dim=2, keepdim=True)
        return sums if self.rounding.per_channel else sums.sum().expand_as(sums)


def round_on_gram(problem: GramProblem, sweeps: int) -> tuple[Tensor, Tensor]:
    """Return the integers minus the zero-point, (groups, out, in), and their scale, float32.

    Args:
        problem: what to minimize; its scale is the one to start with.
        sweeps: of coordinate descent, at most.
    """
    ordered, order = problem.ordered()
    scale = problem.rounding.affine.scale
    integers = round_at_scale(ordered, scale, sweeps)
    refitted = ordered.best_scale(integers, scale)
    again = round_at_scale(ordered, refitted, sweeps)
    refitted_again = ordered.best_scale(again, refitted)
    is_better = ordered.loss(again, refitted_again) < ordered.loss(integers, refitted)
    integers = torch.where(is_better, again, integers)
    scale = torch.where(is_better, refitted_again, refitted)
    return integers[:, :, order.argsort()], scale


def round_at_scale(problem: GramProblem, scale: Tensor, sweeps: int) -> Tensor:
    """Return the integers for a fixed scale; `problem` is one with its inputs in order."""
    integers = _compensated(problem, scale)
    _descend(integers, problem, scale, sweeps)
    return integers


def _damped(gram: Tensor) -> Tensor:
    """Return H with a multiple of the identity added, so that it can be factored."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    damping = torch.where(mean > 0, _DAMPING * mean, 1.0)
    while True:
        damped = gram + torch.diag_embed(damping.expand_as(diagonal))
        if not torch.linalg.cholesky_ex(damped).info.any():
            return damped
        damping = 10 * damping  # float32 took the least eigenvalue for a negative one


def _compensated(problem: GramProblem, scale: Tensor) -> Tensor:
    """Round input by input; those behind make up for the error."""
    weight, gram = problem.rounding.weight, problem.gram
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rest = weight - torch.bmm(problem.cross, inverse)
    integers = torch.empty_like(rest)
    affine = problem.rounding.affine
    per_output = scale.mT, affine.lowest.mT, affine.highest.mT
    for start in range(0, weight.shape[2], _BLOCK):
        end = min(start + _BLOCK, weight.shape[2])
        own = rest[:, :, start:end].mT.contiguous()  # (groups, inputs, out): an input is a row
        errors = torch.empty_like(own)
        rounded = torch.empty_like(own)
        for place in range(end - start):
            at = start + place
            row = _round(own[:, place : place + 1], *per_output)
            rounded[:, place : place + 1] = row
            error = own[:, place : place + 1] - row * per_output[0]
            error /= factor[:, at, at, None, None]
            errors[:, place : place + 1] = error
            behind = own[:, place + 1 :]
            behind.baddbmm_(factor[:, at, at + 1 : end, None], error, alpha=-1)
        integers[:, :, start:end] = rounded.mT
        rest[:, :, end:].baddbmm_(errors.mT, factor[:, start:end, end:], alpha=-1)
    return integers


def _descend(integers: Tensor, problem: GramProblem, scale: Tensor, sweeps: int) -> None:
    """Set each input's integers to the best of all, the others held fixed, in place.

    It ends where a sweep moves next to nothing.
    """
    gram = problem.gram
    affine = problem.rounding.affine
    per_output = scale.mT, affine.lowest.mT, affine.highest.mT
    inverse_variance = 1 / gram.diagonal(dim1=1, dim2=2)
    # Half of the gradient of (2) by D.
    gradient = torch.baddbmm(problem.cross, integers * scale - problem.rounding.weight, gram)
    for _ in range(sweeps):
        num_moved = 0
        for start in range(0, integers.shape[2], _BLOCK):
            end = min(start + _BLOCK, integers.shape[2])
            own = gradient[:, :, start:end].mT.contiguous()
            before = integers[:, :, start:end].mT * per_output[0]
            steps = torch.zeros_like(own)
            for place in range(end - start):
                at = start + place
                now = before[:, place : place + 1]
                free = now - own[:, place : place + 1] * inverse_variance[:, at, None, None]
                step = _round(free, *per_output) * per_output[0] - now
                steps[:, place : place + 1] = step
                behind = own[:, place + 1 :]
                behind.baddbmm_(gram[:, at, at + 1 : end, None], step)
            gradient.baddbmm_(steps.mT, gram[:, start:end])
            moved = (steps / per_output[0]).round_()
            integers[:, :, start:end] += moved.mT
            num_moved += int(torch.count_nonzero(moved))
        if num_moved <= _FEW * integers.numel():
            break


def _round(values: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the integers of least distance: all but `values` are (groups, 1, out)."""
    return (values / scale).round_().clamp_(low, high)
