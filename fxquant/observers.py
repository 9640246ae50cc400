"""Modules that watch tensors go by while the prepared model is calibrated.

All state is in buffers of fixed size: it survives saving, moves with `.to(device)`, and takes the
same memory for 100 images as for 100,000. Nothing here waits for the host on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.buffers import FixedDtypeModule
from fxquant.histogram import NUM_BINS, Histogram, count_values
from fxquant.ranges import Statistics
from fxquant.recipe import TensorSpec


class Observer(FixedDtypeModule):
    """Hand on a tensor unchanged and keep its statistics.

    A batch that holds NaN or infinity is counted in `nonfinite` and otherwise ignored. Anything but
    a floating-point tensor passes unseen.

    Args:
        spec: what the range will be chosen by.
        clamp: bounds of the fused ReLU behind the tensor, if it is watched before its ReLU.
    """

    low: Tensor
    high: Tensor
    ema_low: Tensor
    ema_high: Tensor
    num_batches: Tensor
    nonfinite: Tensor
    counts: Tensor

    def __init__(self, spec: TensorSpec, clamp: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.clamp = clamp
        self.ranks: set[int] = set()
        """How many axes the tensors had: more than one number where tensors share the observer."""
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        self.register_buffer("ema_low", torch.tensor(0.0))
        self.register_buffer("ema_high", torch.tensor(0.0))
        self.register_buffer("num_batches", torch.tensor(0))
        self.register_buffer("nonfinite", torch.tensor(0))
        self.register_buffer("counts", torch.zeros(NUM_BINS, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        """Return `x` itself."""
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0:
            self.ranks.add(x.dim())
            self._watch(x.detach())
        return x

    def _watch(self, x: Tensor) -> None:
        low, high = (bound.to(torch.float32) for bound in torch.aminmax(x))
        finite = torch.isfinite(low) & torch.isfinite(high)
        momentum = torch.where(self.num_batches == 0, 0.0, self.spec.momentum)
        for buffer, value in (
            (self.low, torch.minimum(self.low, low)),
            (self.high, torch.maximum(self.high, high)),
            (self.ema_low, torch.lerp(low, self.ema_low, momentum)),
            (self.ema_high, torch.lerp(high, self.ema_high, momentum)),
        ):
            buffer.copy_(torch.where(finite, value, buffer))
        self.counts += count_values(x) * finite
        self.num_batches += finite
        self.nonfinite += ~finite

    def statistics(self) -> Statistics:
        """Return what was seen; `num_batches` must not be 0."""
        low, high = self.low.item(), self.high.item()
        return Statistics(
            low=low,
            high=high,
            ema_low=self.ema_low.item(),
            ema_high=self.ema_high.item(),
            histogram=Histogram.of_counts(self.counts.cpu(), low, high),
            clamp=self.clamp,
        )

    def extra_repr(self) -> str:
        """Return the spec, and the bounds of the ReLU that the tensor is watched before."""
        return f"{self.spec}" + (f", before clamp{self.clamp}" if self.clamp else "")


class ChannelMean(FixedDtypeModule):
    """Hand on a tensor unchanged and keep the mean of each channel, for bias correction.

    A batch whose mean is NaN or infinite is left out.

    Args:
        num_channels: of the tensor.
        axis: of the channels, from the end: -1 for a linear layer, -3 for images.
    """

    mean: Tensor
    num_values: Tensor

    def __init__(self, num_channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("num_values", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        values = x.detach().to(torch.float32)
        num_values = values.numel() // values.shape[self.axis]
        if num_values > 0:
            others = [d for d in range(values.dim()) if d != values.dim() + self.axis]
            batch_mean = values.mean(dim=others) if others else values
            finite = torch.isfinite(batch_mean).all()  # else the batch is left out
            self.num_values += num_values * finite
            change = (batch_mean - self.mean) * (num_values / self.num_values)
            self.mean += torch.where(finite, change, 0.0)
        return x
