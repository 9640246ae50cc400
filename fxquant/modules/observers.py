"""Modules that watch tensors go by while the prepared model is calibrated.

All state is in buffers of fixed size: it survives saving, moves with `.to(device)`, and takes the
same memory for 100 images as for 100,000. Nothing here waits for the host on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.modules.own import FixedDtypeModule
from fxquant.numerics.activation_ranges import Statistics, activation_range
from fxquant.numerics.cross_entropy import cross_entropy_range
from fxquant.numerics.histogram import NUM_BINS, Histogram, count_values
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as

_MAX_ROWS, _ROWS_PER_BATCH = 2048, 256  # of logits


@stored_as("Observer")
class Observer(FixedDtypeModule):
    """Hand on a tensor unchanged and keep its statistics.

    A batch that holds NaN or infinity is counted in `nonfinite` and otherwise ignored. Anything but
    a floating-point tensor passes unseen.

    Args:
        spec: what the range will be chosen by.
        clamp: bounds of the fused ReLU behind the tensor, if it is watched before its ReLU.
        known: the range, () or one per channel each, if it needs no data; then nothing is watched.
        axis: of the channels, from the end, where each has its own range.
    """

    stage = "prepared"
    watches = True

    spec: TensorSpec
    clamp: tuple[float, float] | None
    known: tuple[Tensor, Tensor] | None
    axis: int | None
    ranks: set[int]
    """How many axes the tensors had: more than one number where tensors share the observer."""
    low: Tensor
    high: Tensor
    ema_low: Tensor
    ema_high: Tensor
    first_low: Tensor
    first_high: Tensor
    num_batches: Tensor
    nonfinite: Tensor
    counts: Tensor

    def __init__(
        self,
        spec: TensorSpec,
        clamp: tuple[float, float] | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        axis: int | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.clamp = clamp
        self.known = known
        self.axis = axis
        self.ranks = set()
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        self.register_buffer("ema_low", torch.tensor(0.0))
        self.register_buffer("ema_high", torch.tensor(0.0))
        self.register_buffer("first_low", torch.tensor(0.0))
        self.register_buffer("first_high", torch.tensor(0.0))
        self.register_buffer("num_batches", torch.tensor(0))
        self.register_buffer("nonfinite", torch.tensor(0))
        self.register_buffer("counts", torch.zeros(NUM_BINS, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        """Return `x` itself."""
        if torch._C._is_tracing() or not isinstance(x, Tensor) or x.is_meta:
            return x  # there is nothing to see
        if x.is_floating_point() and x.numel() > 0:
            self.ranks.add(x.dim())
            if self.needs_data:
                self.follow(x)
                self._watch(x.detach())
        return x

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of an observer."""
        scalars = (self.low, self.high, self.ema_low, self.ema_high, self.num_batches)
        if any(each.numel() != 1 for each in (*scalars, self.nonfinite)):
            raise ValueError("an observer's low, high or number of batches is not one number")
        if tuple(self.counts.shape) != (NUM_BINS,):
            raise ValueError(f"{tuple(self.counts.shape)} counts, where {NUM_BINS} are right")

    @property
    def needs_data(self) -> bool:
        """Whether the range will come from what calibration sees."""
        return self.known is None and not self.spec.dynamic

    def _watch(self, x: Tensor) -> None:
        low, high = (bound.to(torch.float32) for bound in torch.aminmax(x))
        finite = torch.isfinite(low) & torch.isfinite(high)
        is_first = self.num_batches == 0
        momentum = torch.where(is_first, 0.0, self.spec.momentum)
        for buffer, value in (
            (self.low, torch.minimum(self.low, low)),
            (self.high, torch.maximum(self.high, high)),
            (self.ema_low, torch.lerp(low, self.ema_low, momentum)),
            (self.ema_high, torch.lerp(high, self.ema_high, momentum)),
            (self.first_low, torch.where(is_first, low, self.first_low)),
            (self.first_high, torch.where(is_first, high, self.first_high)),
        ):
            buffer.copy_(torch.where(finite, value, buffer))
        self.counts += count_values(x) * finite
        self.num_batches += finite
        self.nonfinite += ~finite

    def range_by(self, spec: TensorSpec) -> tuple[Tensor, Tensor]:
        """Return the range (low, high) that `spec` chooses, () or (channels,) each, on the CPU."""
        low, high = self.known if self.known is not None else self._range_of_seen(spec)
        return low.cpu(), high.cpu()

    def _range_of_seen(self, spec: TensorSpec) -> tuple[Tensor, Tensor]:
        return _scalars(activation_range(statistics_of([self]), spec))

    @property
    def seen_rank(self) -> int | None:
        """How many axes the tensors had; None if there were none, or not all had as many."""
        return next(iter(self.ranks)) if len(self.ranks) == 1 else None

    def state(self) -> dict[str, Any]:
        """Return all buffers and the numbers of axes."""
        return {"ranks": set(self.ranks), **super().state()}

    def take_in(self, states: Sequence[dict[str, Any]]) -> None:
        """Become what all ranks saw.

        Minima, maxima and histograms come out as if one process had seen all batches, in any order;
        moving averages as if it had seen those of rank 0 first, then those of rank 1, and so on.
        """
        num_batches = from_ranks(states, "num_batches")
        self.low.copy_(from_ranks(states, "low").amin(0))
        self.high.copy_(from_ranks(states, "high").amax(0))
        for end in ("low", "high"):
            averages, firsts = (from_ranks(states, f"{name}_{end}") for name in ("ema", "first"))
            joined = joined_averages(averages, firsts, num_batches, self.spec.momentum)
            getattr(self, f"ema_{end}").copy_(joined)
            getattr(self, f"first_{end}").copy_(firsts[num_batches > 0][:1].sum(0))
        for name in ("num_batches", "nonfinite", "counts"):
            getattr(self, name).copy_(from_ranks(states, name).sum(0))
        self.ranks = set().union(*(state["ranks"] for state in states))

    def facts(self) -> str:
        """Return the spec."""
        return str(self.spec)

    def extra_repr(self) -> str:
        """Return the spec, and the bounds of the ReLU that the tensor is watched before."""
        return f"{self.spec}" + (f", before clamp{self.clamp}" if self.clamp else "")


def statistics_of(observers: Sequence[Observer]) -> Statistics:
    """Return what they saw as if it were one tensor; each must have seen something.

    Where the bounds of their ReLUs differ, that is what is behind the ReLUs.
    """
    low = min(each.low.item() for each in observers)
    high = max(each.high.item() for each in observers)
    clamps = {each.clamp for each in observers}
    if len(clamps) > 1:
        return Statistics.together([statistics_of([each]) for each in observers])
    counts = torch.stack([each.counts for each in observers]).sum(0).cpu()
    return Statistics(
        low=low,
        high=high,
        ema_low=min(each.ema_low.item() for each in observers),
        ema_high=max(each.ema_high.item() for each in observers),
        histogram=Histogram.of_counts(counts, low, high),
        clamp=clamps.pop(),
    )


@stored_as("LogitObserver")
class LogitObserver(Observer):
    """An `Observer` of a model's outputs that keeps some of them whole, evenly from all batches.

    The classes are on axis 1: of logits (samples, classes), or of maps of them.
    """

    sized_by_data = ("rows",)
    rows: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.register_buffer("rows", torch.zeros(0))

    def _watch(self, x: Tensor) -> None:
        super()._watch(x)
        if x.dim() < 2 or not torch.isfinite(x).all():
            return
        rows = x.movedim(1, -1).flatten(0, -2).to(torch.float32)
        rows = rows[:: max(1, len(rows) // _ROWS_PER_BATCH)][:_ROWS_PER_BATCH]
        kept = torch.cat([self.rows, rows]) if self.rows.numel() else rows.clone()
        self.rows = kept[::2] if len(kept) > _MAX_ROWS else kept

    def _range_of_seen(self, spec: TensorSpec) -> tuple[Tensor, Tensor]:
        if spec.range != "cross_entropy":
            return super()._range_of_seen(spec)
        ends = self.low.item(), self.high.item()
        return _scalars(cross_entropy_range(self.rows.cpu(), *ends, spec))

    def take_in(self, states: Sequence[dict[str, Any]]) -> None:
        """Become what all ranks saw, with all their rows."""
        super().take_in(states)
        self.rows = torch.cat([state["rows"] for state in states]).to(self.low.device)


def _scalars(ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(ends, dtype=torch.float64).unbind()
    return low, high


def from_ranks(states: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Return the buffers of one name, (ranks, *shape)."""
    return torch.stack([state[name] for state in states])


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ wᵢ xᵢ / Σ wᵢ over the ranks; (ranks, *shape) and (ranks,) -> (*shape,)."""
    shares = weights.to(torch.float32) / weights.sum().clamp(min=1)
    return (values * shares.reshape(-1, *[1] * (values.dim() - 1))).sum(0)


def joined_averages(
    averages: Tensor, firsts: Tensor, num_batches: Tensor, momentum: float
) -> Tensor:
    """Return the moving average over the batches of all ranks, one rank behind the other.

    A rank's own begins with its first batch, e₁ = b₁; behind an average e it would have become

        mⁿ e + (1 - m) Σ mⁿ⁻ⁱ bᵢ = eₙ + mⁿ (e - b₁)

    Args:
        averages: eₙ of each rank: (ranks, *shape).
        firsts: b₁ of each rank.
        num_batches: n of each rank: (ranks,); of one without batches the others do not count.
        momentum: m.
    """
    seen = [rank for rank, number in enumerate(num_batches.tolist()) if number > 0]
    wide, starts = averages.to(torch.float64), firsts.to(torch.float64)
    joined = wide[seen[0]] if seen else wide[0]
    for rank in seen[1:]:
        kept = momentum ** int(num_batches[rank])
        joined = wide[rank] + kept * (joined - starts[rank])
    return joined.to(averages.dtype)
