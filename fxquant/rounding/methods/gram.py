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
from functools import cached_property

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

    def ordered(self) -> tuple[OrderedProblem, Tensor]:
        """Return the problem damped, inputs of most variance first, and that order."""
        order = self.gram.diagonal(dim1=1, dim2=2).sum(0).argsort(descending=True)
        rounding = replace(self.rounding, weight=self.rounding.weight[:, :, order])
        gram, root = _damped(self.gram[:, order][:, :, order])
        return OrderedProblem(rounding, gram, self.cross[:, :, order], root), order


@dataclass(frozen=True, eq=False)
class OrderedProblem(GramProblem):
    """A problem whose H can be inverted, inputs in the order in which they are rounded.

    Args:
        root: U of H = U Uᵀ, upper triangular, (groups, in, in).
    """

    root: Tensor

    @cached_property
    def free(self) -> Tensor:
        """The free minimum of (2), W - C H⁻¹."""
        half = torch.linalg.solve_triangular(self.root, self.cross.mT, upper=True)
        solved: Tensor = torch.linalg.solve_triangular(self.root.mT, half, upper=False)
        return self.rounding.weight - solved.mT

    @cached_property
    def carried(self) -> Tensor:
        """U_jk / U_kk: what input k makes up for, of each unit that input j is off."""
        return self.root / self.root.diagonal(dim1=1, dim2=2)[:, None]

    @cached_property
    def pull(self) -> Tensor:
        """W H - C, half of the gradient of (2) where all integers are 0, turned around."""
        pull: Tensor = torch.baddbmm(self.cross, self.rounding.weight, self.gram, beta=-1)
        return pull

    def per_scale(self, per_weight: Tensor) -> Tensor:
        """Return sums over the weights that share a scale, shaped as that."""
        sums = per_weight.sum(dim=2, keepdim=True)
        return sums if self.rounding.per_channel else sums.sum().expand_as(sums)


@dataclass(frozen=True, eq=False)
class Rounded:
    """Integers for a scale.

    Args:
        problem: in order.
        scale: s, (groups, out, 1).
        integers: q, minus the zero-point, (groups, out, in).
        slope: half of the gradient of (2) by D, in units of the scale: (groups, out, in).
    """

    problem: OrderedProblem
    scale: Tensor
    integers: Tensor
    slope: Tensor

    def refitted(self) -> tuple[Tensor, Tensor]:
        """Return the scale of least loss for these integers, and (2) there, as `scale`.

        s q H qᵀ = q (W H - C)ᵀ; where either is not positive, the scale that they have.
        """
        of, q = self.problem, self.integers
        product = self.slope + of.pull / self.scale  # q H
        wanted, power = of.per_scale(q * of.pull), of.per_scale(q * product)
        usable = (wanted > 0) & (power > 0)
        scale = torch.where(usable, wanted / power, self.scale)
        return scale, scale.square() * power - 2 * scale * wanted  # but for what q has no part in


def round_on_gram(problem: GramProblem, sweeps: int) -> tuple[Tensor, Tensor]:
    """Return the integers minus the zero-point, (groups, out, in), and their scale, float32.

    Args:
        problem: what to minimize; its scale is the one to start with.
        sweeps: of coordinate descent, at most.
    """
    ordered, order = problem.ordered()
    first = rounded_at_scale(ordered, problem.rounding.affine.scale, sweeps)
    scale, loss = first.refitted()
    again = rounded_at_scale(ordered, scale, sweeps)
    other_scale, other_loss = again.refitted()
    is_better = other_loss < loss
    integers = torch.where(is_better, again.integers, first.integers)
    scale = torch.where(is_better, other_scale, scale)
    return integers[:, :, order.argsort()], scale


def rounded_at_scale(problem: OrderedProblem, scale: Tensor, sweeps: int) -> Rounded:
    """Return the integers for a fixed scale."""
    integers = _compensated(problem, scale)
    difference = integers - problem.rounding.weight / scale
    slope = torch.baddbmm(problem.cross / scale, difference, problem.gram)
    found = Rounded(problem, scale, integers, slope)
    _descend(found, sweeps)
    return found


def _damped(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return H with a multiple of the identity added, so that it has a root, and that: U Uᵀ."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    damping = torch.where(mean > 0, _DAMPING * mean, 1.0)
    while True:
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping)
        root, failed = torch.linalg.cholesky_ex(damped.flip(1, 2))  # lower, from the last input on
        if not failed.any():
            return damped, root.flip(1, 2)
        damping = 10 * damping  # float32 took the least eigenvalue for a negative one


def _compensated(problem: OrderedProblem, scale: Tensor) -> Tensor:
    """Round input by input; those behind make up for the error.

    With e_j = s q_j - v_j for the free minimum v, (2) is Σ_k (Σ_{j≤k} e_j U_jk)²: input k is best
    at v_k - Σ_{j<k} e_j U_jk / U_kk. An input is a row here, (groups, 1, out), in units of s.
    """
    free, carried = problem.free / scale, problem.carried
    wanted = free.clone()
    low, high = _limits(problem)
    for start in range(0, free.shape[2], _BLOCK):
        end = min(start + _BLOCK, free.shape[2])
        own, errors = (each[:, :, start:end].mT.contiguous() for each in (wanted, free))
        among = carried[:, start:end, start:end]
        rows = zip(torch.split(own, 1, 1), torch.split(errors, 1, 1), strict=True)
        for place, (value, error) in enumerate(rows):
            value.round_().clamp_(low, high)
            torch.sub(value, error, out=error)
            own[:, place + 1 :].addcmul_(among[:, place, place + 1 :, None], error, value=-1)
        wanted[:, :, start:end] = own.mT
        wanted[:, :, end:].baddbmm_(errors.mT, carried[:, start:end, end:], alpha=-1)
    return wanted


def _descend(found: Rounded, sweeps: int) -> None:
    """Set each input's integers to the best of all, the others held fixed, in place.

    It ends where a sweep moves next to nothing. Of a block of inputs those are looked at whose
    integers were not the best when the block's turn came; what moves them on the others, the next
    sweep sees.
    """
    gram, integers, slope = found.problem.gram, found.integers, found.slope
    low, high = _limits(found.problem)
    per_slope = -1 / gram.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        num_moved = 0
        for start in range(0, integers.shape[2], _BLOCK):
            block = slice(start, start + _BLOCK)
            own, now = slope[:, :, block].mT, integers[:, :, block].mT
            towards = per_slope[:, block, None]
            best = torch.addcmul(now, own, towards).round_().clamp_(low, high)
            places = (best != now).any(2).any(0).nonzero().squeeze(1)
            if not len(places):
                continue
            at = start + places
            own, now, towards = (each[:, places].contiguous() for each in (own, now, towards))
            steps = _steps(own, now, towards, gram[:, at][:, :, at], (low, high))
            slope.baddbmm_(steps.mT, gram[:, at])
            integers[:, :, at] += steps.mT
            num_moved += int(torch.count_nonzero(steps))
        if num_moved <= _FEW * integers.numel():
            break


def _steps(
    slope: Tensor, now: Tensor, towards: Tensor, among: Tensor, limits: tuple[Tensor, Tensor]
) -> Tensor:
    """Return how far each input's integers go to the best, one input after the other.

    Args:
        slope: half of the gradient of (2), (groups, inputs, out); written to.
        now: the integers, shaped so.
        towards: -1 / H_jj, (groups, inputs, 1).
        among: H between these inputs, (groups, inputs, inputs).
        limits: of the integers.
    """
    steps = torch.empty_like(slope)
    parts = (torch.split(each, 1, 1) for each in (slope, now, towards, steps))
    for place, (value, integer, to, step) in enumerate(zip(*parts, strict=True)):
        torch.addcmul(integer, value, to, out=step).round_().clamp_(*limits).sub_(integer)
        slope[:, place + 1 :].addcmul_(among[:, place + 1 :, place, None], step)
    return steps


def _limits(problem: GramProblem) -> tuple[Tensor, Tensor]:
    """Return the least and the largest integer of each output: (groups, 1, out)."""
    affine = problem.rounding.affine
    return affine.lowest.mT, affine.highest.mT
