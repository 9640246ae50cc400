"""The loss of a layer's reconstruction, and its gradient by the weight, written by hand.

    L = E[(f(y) - t)²],  y = W̃ x̂ + b = (W x̂ + b) + D x̂,  D = W̃ - W
    ∂L/∂W̃ = 2 E[e x̂ᵀ],  e = (f(y) - t) f'(y)                                (`SampledRows`)

Where there is no activation function, L is quadratic, and two moments, gathered once, replace the
data (`Moments`):

    ∂L/∂W̃ = 2 (D E[x̂ x̂ᵀ] + E[(W x̂ + b - t) x̂ᵀ])

In terms of D only small numbers are rounded, so that the products may be bfloat16's.

Where several ranks have rows, each its own, a rank learns its share of the outputs, on the rows or
the moments of all (`fxquant.rounding.methods.shares`).

All tensors are grouped: weights (groups, out, in), inputs (groups, rows, in), outputs (groups,
rows, out), with `out` and `in` counted within a group, `in` over the taps of a kernel too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxquant.rounding.methods.activations import Activation, Differentiated, Identity
from fxquant.rounding.methods.shares import ALL, Share
from fxquant.streaming.distributed import from_all_ranks, gather_objects, sum_over_ranks

_MIN_ROWS, _ROWS_PER_INPUT = 128, 16  # for a step: a depthwise layer has 9 inputs, 144 rows will do


@dataclass(frozen=True)
class Rows:
    """Output positions of a layer.

    Args:
        inputs: x̂, what the quantized network feeds the layer: (groups, rows, in). In their dtype
            they are multiplied by differences of weights.
        outputs: W x̂ + b with the float weight, before the activation: (groups, rows, out).
        targets: t, the float network's, behind the activation: (groups, rows, out).
    """

    inputs: Tensor
    outputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[1]

    def error(
        self, difference: Tensor, activation: Activation, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return Σ (f(y) - t)² and Σ t²: float64, ().

        Args:
            difference: W̃ - W, (groups, out, in).
            activation: f.
            shift: what is added to the bias, (groups, out).
        """
        y = self.outputs + torch.bmm(self.inputs, difference.mT.to(self.inputs.dtype))
        if shift is not None:
            y += shift[:, None]
        error = activation(y).sub(self.targets).to(torch.float64).square().sum()
        return error, self.targets.to(torch.float64).square().sum()

    def of_all_ranks(self, share: Share) -> Rows:
        """Return all ranks' rows of a share of the outputs.

        Ranks take turns, so that any few rows in a row are of all ranks.
        """
        inputs = from_all_ranks(self.inputs, 1)[share.groups].contiguous()
        outputs, targets = (
            from_all_ranks(each, 1)[share.groups, :, share.outputs].contiguous()
            for each in (self.outputs, self.targets)
        )
        return Rows(inputs, outputs, targets)


def means_over_ranks(rows: Rows, *sums: Tensor) -> list[Tensor]:
    """Return the means over all ranks' rows of what was summed over each rank's own."""
    count = sums[0].new_full((), float(len(rows)))
    sum_over_ranks(*sums, count)
    return [each / count for each in sums]


class Loss(Protocol):
    """The data's part of the loss, E[(f(y) - t)²] summed over outputs.

    The caller writes W̃ - W into `difference` and finds the gradient in `gradient`; both are
    (groups, out, in), in the dtype of the matrix products.
    """

    input_power: Tensor
    """E[x̂²] of each group: (groups,)."""
    difference: Tensor
    gradient: Tensor
    can_replay: bool
    """Whether a GPU may record `write_gradient` and replay it: nothing leaves the GPU's kernels."""

    def take_turn(self, step: int) -> None:
        """Choose what the next gradient is computed on."""

    def write_gradient(self) -> None:
        """Write ∂/∂W̃ at `difference` into `gradient`."""


class SampledRows:
    """The loss on `num_rows` rows a step, which take turns.

    Args:
        rows: in random order.
        activation: f.
        num_rows: for each step; all of them if there are fewer.
        dtype: of the two matrix products.
    """

    def __init__(
        self,
        rows: Rows,
        activation: Activation,
        num_rows: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        norms = torch.linalg.vector_norm(rows.inputs, dim=(1, 2), dtype=torch.float32)
        self.input_power = norms.square()
        self.input_power /= rows.inputs[0].numel()
        self._pool = (rows.inputs.to(dtype), rows.outputs, rows.targets)
        self._activation = activation
        groups, _, inputs = rows.inputs.shape
        outputs = rows.outputs.shape[2]
        in_a_step = min(num_rows, max(_MIN_ROWS, _ROWS_PER_INPUT * inputs))
        self._turns = max(1, len(rows) // in_a_step)
        self._size = len(rows) // self._turns
        self._factor = 2 / self._size
        self.can_replay = rows.inputs.is_cuda and not isinstance(activation, Differentiated)
        self._turn = [each[:, : self._size].clone() for each in self._pool]
        self.difference = rows.inputs.new_empty(groups, outputs, inputs, dtype=dtype)
        self.gradient = torch.empty_like(self.difference)
        self._product = rows.inputs.new_empty(groups, self._size, outputs, dtype=dtype)
        self._y = rows.outputs.new_empty(groups, self._size, outputs)
        self._error = torch.empty_like(self._y)

    def take_turn(self, step: int) -> None:
        """Choose this step's rows: as views, or copied to one place where a GPU replays steps."""
        start = step % self._turns * self._size
        turn = [each.narrow(1, start, self._size) for each in self._pool]
        if not self.can_replay:
            self._turn = turn
            return
        for place, rows in zip(self._turn, turn, strict=True):
            place.copy_(rows)

    def write_gradient(self) -> None:
        """Write the gradient on this turn's rows."""
        inputs, outputs, targets = self._turn
        torch.bmm(inputs, self.difference.mT, out=self._product)
        torch.add(outputs, self._product, out=self._y)
        self._activation.write_gradient(self._y, targets, self._error)
        torch.mul(self._error, self._factor, out=self._error)
        self._product.copy_(self._error)
        torch.bmm(self._product.mT, inputs, out=self.gradient)


class Moments:
    """The loss without an activation function, from the second moments of all ranks' rows.

    Args:
        rows: of this rank.
        share: of the outputs.
    """

    def __init__(self, rows: Rows, share: Share = ALL) -> None:
        gram = torch.bmm(rows.inputs.mT, rows.inputs)
        cross = torch.bmm((rows.outputs - rows.targets).mT, rows.inputs)
        gram, cross = means_over_ranks(rows, gram, cross)
        self._gram, self._cross = 2 * gram[share.groups], 2 * cross[share.groups, share.outputs]
        self.input_power = self._gram.diagonal(dim1=1, dim2=2).mean(dim=1) / 2
        self.can_replay = rows.inputs.is_cuda
        self.difference = torch.empty_like(self._cross)
        self.gradient = torch.empty_like(self._cross)

    def take_turn(self, step: int) -> None:
        """Do nothing: every step works on all rows."""

    def write_gradient(self) -> None:
        """Write the gradient on all rows."""
        torch.baddbmm(self._cross, self.difference, self._gram, out=self.gradient)


def cheaper_loss(
    rows: Rows,
    activation: Activation,
    num_rows: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
    share: Share = ALL,
) -> SampledRows | Moments:
    """Return the loss that takes fewer multiplications, the gathering of moments included.

    Args:
        rows: of this rank.
        activation: f.
        num_rows: for each step, on all ranks together.
        steps: that will be taken.
        dtype: of the matrix products.
        share: of the outputs, that the loss is of.
    """
    inputs, outputs = rows.inputs.shape[2], rows.outputs.shape[2]
    all_rows = sum(gather_objects(len(rows)))
    sampled = steps * 2 * min(num_rows, all_rows) * inputs * outputs
    moments = all_rows * inputs * (inputs + outputs) + steps * outputs * inputs * inputs
    if isinstance(activation, Identity) and moments <= sampled:
        return Moments(rows, share)
    rows = Rows(rows.inputs.to(dtype), rows.outputs, rows.targets).of_all_ranks(share)
    return SampledRows(rows, activation, num_rows, dtype)
