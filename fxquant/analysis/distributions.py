"""Histograms of weights and activations, before and after rounding: plain numbers, for pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.mixed_precision.options import Side
from fxquant.mixed_precision.probes import ActivationProbe, Tap, WeightProbe
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import statistics_of
from fxquant.numerics.decibels import decibels, sqnr

_NUM_BINS = 64


@dataclass(frozen=True)
class Distribution:
    """The values of one weight, or of the activations that one call reads."""

    name: str
    """As in `TensorCost`."""
    side: Side
    bits: int
    edges: tuple[float, ...]
    """One more than bins."""
    counts: tuple[float, ...]
    """Of the float values in each bin; of activations shares, which sum to 1."""
    rounded: tuple[float, ...]
    """Of the values that they are rounded to."""
    low: float
    """The least value that is not clipped; of weights with a scale for each channel, of all."""
    high: float
    own: float | None
    """Signal over rounding error, in dB; None: not known."""


def distributions_of(probes: Iterable[WeightProbe | ActivationProbe]) -> list[Distribution]:
    """Return those of what probes watch, where there are values, and a range that stays."""
    found = (_distribution_of(probe) for probe in probes)
    return [each for each in found if each is not None]


def own_losses(distributions: Iterable[Distribution]) -> dict[tuple[str, Side], float]:
    """Return each tensor's own dB, where that is known."""
    return {(each.name, each.side): each.own for each in distributions if each.own is not None}


def _distribution_of(probe: WeightProbe | ActivationProbe) -> Distribution | None:
    if isinstance(probe, WeightProbe):
        return _of_weights(probe)
    tap = max(probe.group.taps, key=lambda each: each.bits)
    return _of_activation(probe, tap)


def _of_weights(probe: WeightProbe) -> Distribution:
    layer, forms = next(iter(probe.layers.items()))
    form = forms[probe.widths.index(probe.bits)]
    exact, rounded = layer.weight.detach().float().cpu(), form.weight.detach().float().cpu()
    affine = form.weight_affine
    low, high = affine.lowest * affine.scale, affine.highest * affine.scale
    edges = _edges(exact.min().item(), exact.max().item())
    counts = _counted(exact.flatten(), torch.ones(exact.numel()), edges)
    after = _counted(rounded.flatten(), torch.ones(rounded.numel()), edges)
    loss = sqnr(exact, rounded)
    return Distribution(
        probe.name, "weights", probe.bits, edges, counts, after,
        low.min().item(), high.max().item(), loss if math.isfinite(loss) else None,
    )  # fmt: skip


def _of_activation(probe: ActivationProbe, tap: Tap) -> Distribution | None:
    quantizer = tap.quantizers[probe.widths.index(tap.bits)]
    if not isinstance(quantizer, FakeQuantize) or quantizer.axis is not None:
        return None
    if any(observer.num_batches == 0 for observer in tap.seen):
        return None
    points, weights = statistics_of(tap.seen).output.subdivided(4)
    affine = quantizer.affine.map(Tensor.cpu)
    error = affine.error(points)
    low, high = affine.lowest * affine.scale, affine.highest * affine.scale
    edges = _edges(points.min().item(), points.max().item())
    loss = decibels(
        (points.square() * weights).sum().item(), (error.square() * weights).sum().item()
    )
    return Distribution(
        probe.name, "activations", tap.bits, edges,
        _counted(points, weights, edges), _counted(points + error, weights, edges),
        low.item(), high.item(), loss if math.isfinite(loss) else None,
    )  # fmt: skip


def _edges(low: float, high: float) -> tuple[float, ...]:
    if not high > low:
        high = low + (abs(low) or 1.0)
    return tuple(torch.linspace(low, high, _NUM_BINS + 1, dtype=torch.float64).tolist())


def _counted(values: Tensor, weights: Tensor, edges: Sequence[float]) -> tuple[float, ...]:
    """Return the weight in each bin; what lies outside counts in the first or the last."""
    ends = torch.tensor(edges[1:-1], dtype=torch.float64)
    bins = torch.bucketize(values.double(), ends)
    found: Any = torch.zeros(_NUM_BINS, dtype=torch.float64).index_add_(0, bins, weights.double())
    return tuple(found.tolist())
