"""Observers that keep each channel's statistics, for ranges of channels and for bias correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.modules.observers import Observer, from_ranks, joined_averages, weighted_mean
from fxquant.modules.own import FixedDtypeModule
from fxquant.numerics.channel_ranges import ChannelStatistics, channel_moments, channel_range
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as


@stored_as("ChannelObserver")
class ChannelObserver(Observer):
    """An `Observer` that keeps each channel's extremes and moments as well.

    A batch's moments are those around its own means; batches count alike, as in the report.

    Args:
        spec: what the ranges will be chosen by.
        clamp: as in `Observer`.
        axis: of the channels, from the end. A tensor that has no such axis, as a bias that is added
            to images, is one channel.
    """

    sized_by_data = (
        "channel_low", "channel_high", "channel_ema_low", "channel_ema_high", "channel_first_low",
        "channel_first_high", "channel_mean", "channel_deviation", "channel_square",
    )  # fmt: skip

    channel_low: Tensor
    channel_high: Tensor
    channel_ema_low: Tensor
    channel_ema_high: Tensor
    channel_first_low: Tensor
    channel_first_high: Tensor
    channel_mean: Tensor
    channel_deviation: Tensor
    channel_square: Tensor
    max_positions: Tensor

    axis: int

    def __init__(self, spec: TensorSpec, clamp: tuple[float, float] | None, axis: int) -> None:
        super().__init__(spec, clamp, axis=axis)
        for name in self.sized_by_data:
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("max_positions", torch.tensor(0))

    def _watch(self, x: Tensor) -> None:
        seen = self.num_batches.clone()
        super()._watch(x)
        if x.dim() < -self.axis:
            return
        num_channels = x.shape[self.axis]
        finite = self.num_batches > seen
        if self.channel_low.numel() == 0:
            for name in self.sized_by_data:
                setattr(self, name, self.low.new_zeros(num_channels))
            self.channel_low.fill_(torch.inf)
            self.channel_high.fill_(-torch.inf)
        low, high, mean, deviation, square = channel_moments(x, self.axis)
        momentum = torch.where(seen == 0, 0.0, self.spec.momentum)
        share = 1 / (seen + 1)
        for buffer, value in (
            (self.channel_low, torch.minimum(self.channel_low, low)),
            (self.channel_high, torch.maximum(self.channel_high, high)),
            (self.channel_ema_low, torch.lerp(low, self.channel_ema_low, momentum)),
            (self.channel_ema_high, torch.lerp(high, self.channel_ema_high, momentum)),
            (self.channel_first_low, torch.where(seen == 0, low, self.channel_first_low)),
            (self.channel_first_high, torch.where(seen == 0, high, self.channel_first_high)),
            (self.channel_mean, torch.lerp(self.channel_mean, mean, share)),
            (self.channel_deviation, torch.lerp(self.channel_deviation, deviation, share)),
            (self.channel_square, torch.lerp(self.channel_square, square, share)),
        ):
            buffer.copy_(torch.where(finite, value, buffer))
        positions = x.numel() // (x.shape[0] * num_channels)
        self.max_positions.clamp_(min=positions)

    def _range_of_seen(self, spec: TensorSpec) -> tuple[Tensor, Tensor]:
        channels = self.channel_statistics()
        return super()._range_of_seen(spec) if channels is None else channel_range(channels, spec)

    def take_in(self, states: Sequence[dict[str, Any]]) -> None:
        """Become what all ranks saw; one that saw nothing has no channels yet."""
        super().take_in(states)
        seen = [state for state in states if state["num_batches"] > 0]
        if not seen:
            return
        num_batches = from_ranks(seen, "num_batches")
        values = {name: from_ranks(seen, name) for name in self.sized_by_data}
        joined = {
            "channel_low": values["channel_low"].amin(0),
            "channel_high": values["channel_high"].amax(0),
        }
        for end in ("low", "high"):
            averages, firsts = values[f"channel_ema_{end}"], values[f"channel_first_{end}"]
            joined[f"channel_first_{end}"] = firsts[0]
            joined[f"channel_ema_{end}"] = joined_averages(
                averages, firsts, num_batches, self.spec.momentum
            )
        for name in ("channel_mean", "channel_deviation", "channel_square"):
            joined[name] = weighted_mean(values[name], num_batches)
        for name, value in joined.items():
            setattr(self, name, value.to(self.low.device))
        self.max_positions.copy_(from_ranks(seen, "max_positions").amax(0))

    def channel_statistics(self) -> ChannelStatistics | None:
        """Return what was seen of the channels; None where a channel never had two positions.

        That is the report's condition, taken from the ACIQ code that it builds on: such a tensor is
        quantized as one.
        """
        if self.max_positions <= 1:
            return None
        return ChannelStatistics(
            low=self.channel_low,
            high=self.channel_high,
            ema_low=self.channel_ema_low,
            ema_high=self.channel_ema_high,
            mean=self.channel_mean,
            deviation=self.channel_deviation,
            sigma=self.channel_square.sqrt(),
            clamp=self.clamp,
        )


@stored_as("ChannelMean")
class ChannelMean(FixedDtypeModule):
    """Hand on a tensor unchanged and keep the mean of each channel, for bias correction.

    A batch whose mean is NaN or infinite is left out.

    Args:
        num_channels: of the tensor.
        axis: of the channels, from the end: -1 for a linear layer, -3 for images.
    """

    watches = True

    axis: int
    mean: Tensor
    num_values: Tensor

    def __init__(self, num_channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("num_values", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        self.follow(x)
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

    def take_in(self, states: Sequence[dict[str, Any]]) -> None:
        """Become the mean of all values that the ranks saw."""
        num_values = from_ranks(states, "num_values")
        self.mean.copy_(weighted_mean(from_ranks(states, "mean"), num_values))
        self.num_values.copy_(num_values.sum(0))
