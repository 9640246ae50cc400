"""The loss of a layer's reconstruction, and its gradient by the weight, written by hand.

    L = E[(f(y) - t)²],  y = W̃ x̂ + b = (W x̂ + b) + D x̂,  D = W̃ - W
    ∂L/∂W̃ = 2 E[e x̂ᵀ],  e = (f(y) - t) f'(y)                                (`SampledRows`)

Where there is no activation function, L is quadratic, and two moments, gathered once, replace the
data (`Moments`):

    ∂L/∂W̃ = 2 (D E[x̂ x̂ᵀ] + E[(W x̂ + b - t) x̂ᵀ])

In terms of D only small numbers are rounded, so that the products may be bfloat16's.

Where several ranks have rows, each its own, all sums go over all of them.

All tensors are grouped: weights (groups, out, in), inputs (groups, rows, in), outputs (groups,
rows, out), with `out` and `in` counted within a group, `in` over the taps of a kernel too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fxquant.rounding.methods.activations import Activation, Differentiated, Identity
from fxquant.streaming.distributed import (
    SumsOfSteps,
    num_ranks,
    object_from_first_rank,
    sum_over_ranks,
)

_MIN_ROWS, _ROWS_PER_INPUT = 128, 16  # for a step: a depthwise layer has 9 inputs, 144 rows will do


@dataclass(frozen=True)
class Rows:
    """Output positions of a layer.

    Args:
        inputs: x̂, what the quantized network feeds the layer: (groups, rows, in).
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
        y = torch.bmm(self.inputs.to(difference.dtype), difference.mT).add_(self.outputs)
        if shift is not None:
            y += shift[:, None]
        error = activation(y).sub(self.targets).to(torch.float64).square().sum()
        return error, self.targets.to(torch.float64).square().sum()


def mean_over_ranks(sums: Tensor, rows: Rows) -> Tensor:
    """Return the mean over all ranks' rows of what was summed over each rank's own."""
    count = sums.new_full((), float(len(rows)))
    if num_ranks() > 1:
        sum_over_ranks(sums, count)
    return sums / count


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

    def steps(self, number: int) -> AbstractContextManager[object]:
        """Return the context in which `number` gradients are written."""

    def take_turn(self, step: int) -> None:
        """Choose what the next gradient is computed on."""

    def write_gradient(self) -> None:
        """Write ∂/∂W̃ at `difference` into `gradient`."""


class SampledRows:
    """The loss on `num_rows` rows a step, which take turns.

    Args:
        rows: in random order.
        activation: f.
        num_rows: for each step, on all ranks together; all of them if there are fewer.
        dtype: of the two matrix products.
    """

    def __init__(
        self,
        rows: Rows,
        activation: Activation,
        num_rows: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.input_power = _input_power(rows)
        self._pool = (rows.inputs.to(dtype), rows.outputs, rows.targets)
        self._activation = activation
        groups, _, inputs = rows.inputs.shape
        outputs = rows.outputs.shape[2]
        in_a_step = min(num_rows, max(_MIN_ROWS, _ROWS_PER_INPUT * inputs))
        self._turns = max(1, len(rows) // -(-in_a_step // num_ranks()))
        self._size = len(rows) // self._turns
        self._factor = 2 / (self._size * num_ranks())
        hand_written = not isinstance(activation, Differentiated)
        self.can_replay = rows.inputs.is_cuda and hand_written and num_ranks() == 1
        self._turn = [each[:, : self._size].clone() for each in self._pool]
        self.difference = rows.inputs.new_empty(groups, outputs, inputs, dtype=dtype)
        self.gradient = torch.empty_like(self.difference)
        self._sums = self.steps(0)
        self._product = rows.inputs.new_empty(groups, self._size, outputs, dtype=dtype)
        self._y = rows.outputs.new_empty(groups, self._size, outputs)
        self._error = torch.empty_like(self._y)

    def steps(self, number: int) -> SumsOfSteps:
        """Return the context in which `number` gradients are written: each is summed over ranks."""
        self._sums = SumsOfSteps(self.gradient, number)
        return self._sums

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
        self._sums.sum()


class Moments:
    """The loss without an activation function, from the second moments of all rows."""

    def __init__(self, rows: Rows) -> None:
        self.input_power = _input_power(rows)
        scale = 2 / (len(rows) * num_ranks())
        self.can_replay = rows.inputs.is_cuda
        self.difference = rows.inputs.new_empty(
            len(rows.inputs), rows.outputs.shape[2], rows.inputs.shape[2]
        )
        self.gradient = torch.empty_like(self.difference)
        self._gram = torch.bmm(rows.inputs.mT, rows.inputs).mul_(scale)
        residual = rows.outputs - rows.targets
        self._cross = torch.bmm(residual.mT, rows.inputs).mul_(scale)
        sum_over_ranks(self._gram, self._cross)

    def steps(self, number: int) -> nullcontext[None]:
        """Return an empty context: the moments are summed over ranks, once."""
        return nullcontext()

    def take_turn(self, step: int) -> None:
        """Do nothing: every step works on all rows."""

    def write_gradient(self) -> None:
        """Write the gradient on all rows."""
        torch.baddbmm(self._cross, self.difference, self._gram, out=self.gradient)


def _input_power(rows: Rows) -> Tensor:
    power: Tensor = torch.linalg.vector_norm(rows.inputs, dim=(1, 2)).square()
    power /= rows.inputs[0].numel() * num_ranks()
    sum_over_ranks(power)
    return power


def cheaper_loss(
    rows: Rows,
    activation: Activation,
    num_rows: int,
    steps: int,
    dtype: torch.dtype = torch.float32,
) -> SampledRows | Moments:
    """Return the loss that takes fewer multiplications, the gathering of moments included.

    That depends on the number of rows, which may differ from rank to rank: rank 0 decides.
    """
    inputs, outputs = rows.inputs.shape[2], rows.outputs.shape[2]
    sampled = steps * 2 * min(-(-num_rows // num_ranks()), len(rows)) * inputs * outputs
    moments = len(rows) * inputs * (inputs + outputs) + steps * outputs * inputs * inputs
    if isinstance(activation, Identity) and object_from_first_rank(moments <= sampled):
        return Moments(rows)
    return SampledRows(rows, activation, num_rows, dtype)
