"""A fake-quantizer that takes its range from each batch that it sees.

This is what the report measures (III.A): ACIQ's clip, computed at inference. It needs no
calibration and costs a few passes over each tensor; integer kernels have nothing like it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.modules.figures import Figures
from fxquant.modules.own import FixedDtypeModule
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.channel_ranges import batch_range
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as


@stored_as("DynamicQuantize")
class DynamicQuantize(FixedDtypeModule):
    """Round a tensor to the grid of Eqs. (1)-(5) over a range of its own, same dtype.

    Args:
        spec: how the range is chosen.
        clamp: bounds of the fused ReLU behind: the range is of what the ReLU lets through, the
            distribution that of the tensor before it.
        axis: of the channels, from the end, where each has its own range.
    """

    stage = "converted"
    rounds = True

    spec: TensorSpec
    clamp: tuple[float, float] | None
    axis: int | None
    grid: Grid

    def __init__(
        self, spec: TensorSpec, clamp: tuple[float, float] | None = None, axis: int | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.clamp = clamp
        self.axis = axis
        # The sign is not known before the data: a symmetric grid is signed unless a ReLU follows.
        self.grid = Grid.of(spec.bits, signed=spec.symmetric and clamp is None)

    def forward(self, x: Any) -> Any:
        """Return `x` rounded; anything but a floating-point tensor as it is."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
            return x
        values = x.detach()
        axis = self.axis if self._has_positions(x) else None
        low, high = batch_range(values, self.spec, self.clamp, axis)
        affine = Affine.over(low, high, self.grid, symmetric=self.spec.symmetric)
        if axis is not None:
            affine = affine.along(axis, x.dim())
        inverse = (1 / affine.scale).to(torch.promote_types(x.dtype, torch.float32))
        steps = (values * inverse).round_().clamp_(affine.lowest, affine.highest)
        return steps.mul_(affine.scale).to(x.dtype)

    def _has_positions(self, x: Tensor) -> bool:
        """Say whether a channel has more than one position: the report's condition."""
        if self.axis is None or x.dim() < -self.axis:
            return False
        return x.numel() > x.shape[0] * x.shape[self.axis]

    def output_figures(self) -> list[Figures]:
        """Return the spec: each batch has a scale of its own."""
        return [Figures(str(self.spec))]

    def why_no_integers(self) -> str:
        """Return what is wrong with a range of each batch."""
        return "ranges taken from each batch (dynamic=True): calibrate them instead"

    def extra_repr(self) -> str:
        """Return the spec and where the range comes from."""
        return f"{self.spec} of each batch" + (", per channel" if self.axis is not None else "")
