"""What is done to each channel of a tensor by itself, where passes have rescaled the channels.

* `ChannelClamp`: what a ReLU6 is then, or any other clip (`fxquant.passes.EqualizeLayers`);
* `ChannelAffine`: what brings channels to one range (`fxquant.passes.SmoothInputs`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.modules.own import OwnModule
from fxquant.numerics.affine import along_axis
from fxquant.stored_names import stored_as


@stored_as("ChannelClamp")
class ChannelClamp(OwnModule):
    """min(max(x, low), high), channel by channel.

    Args:
        low: (channels,).
        high: (channels,).
        axis: of the channels, from the end.

    >>> ChannelClamp(torch.zeros(2), torch.tensor([1.0, 6.0]), -1)(torch.tensor([[9.0, 9.0]]))
    tensor([[1., 6.]])
    """

    axis: int
    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, x: Tensor) -> Tensor:
        """Return x within the bounds, in its own dtype."""
        low, high = (along_axis(each, self.axis, x.dim()) for each in (self.low, self.high))
        return torch.clamp(x, low.to(x.dtype), high.to(x.dtype))

    def extra_repr(self) -> str:
        """Name the least and the greatest bounds."""
        low, high = float(self.low.min()), float(self.high.max())
        return f"{len(self.high)} channels, within {low:.4g} … {high:.4g}"

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of such a module."""
        if self.low.dim() != 1 or self.low.shape != self.high.shape or len(self.low) == 0:
            raise ValueError(f"bounds of shapes {[*self.low.shape]}, {[*self.high.shape]}")
        if not self.low.is_floating_point() or not torch.all(self.low <= self.high):
            raise ValueError("lower bounds above the upper ones")

    def rescaled(self, factor: Tensor) -> ChannelClamp:
        """Return the clamp of channels that are `factor`, (channels,), as large."""
        low, high = (each * factor.to(each.dtype) for each in (self.low, self.high))
        return ChannelClamp(low, high, self.axis)


@stored_as("ChannelAffine")
class ChannelAffine(OwnModule):
    """scale · x + shift, with the channels on the last axis.

    Args:
        scale: (channels,).
        shift: (channels,).

    >>> ChannelAffine(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]))(torch.ones(1, 2))
    tensor([[1., 5.]])
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rescaled tensor, in its own dtype."""
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))

    def extra_repr(self) -> str:
        """Name the least and the greatest scale."""
        low, high = float(self.scale.min()), float(self.scale.max())
        return f"{len(self.scale)} channels, times {low:.4g} … {high:.4g}"

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of such a module."""
        if self.scale.dim() != 1 or self.scale.shape != self.shift.shape:
            raise ValueError(f"of shapes {[*self.scale.shape]}, {[*self.shift.shape]}")
