"""What makes ranges wide: single channels, long tails; with a word on what helps against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.capture.naming import find_regions
from fxquant.graph.operations import module_of
from fxquant.graph.selection import call_name
from fxquant.mixed_precision.options import Side
from fxquant.mixed_precision.probes import ActivationProbe, WeightProbe
from fxquant.modules.layers import as_layer, channel_axis, layer_type, output_rows
from fxquant.modules.observers import statistics_of
from fxquant.recipe.recipe import Recipe
from fxquant.reporting.running_copies import copy_to_run
from fxquant.streaming.running import Arguments, copied_to, device_of

_WIDE = 8.0  # times the median channel
_FAR = 4.0  # times what 99.9 % of the values keep to
_SPIKE = 12.0  # standard deviations of a channel's weights
_FEWEST_CHANNELS = 8
_INSIDE = 0.999


@dataclass(frozen=True)
class Outlier:
    """A range that a few values make wide."""

    name: str
    """As in `TensorCost`."""
    side: Side
    what: str
    times: float
    """How many times as wide as usual."""
    advice: str


def outliers_of(
    probes: Sequence[WeightProbe | ActivationProbe], peaks: dict[str, Tensor], recipe: Recipe
) -> list[Outlier]:
    """Return what stands out, the farthest first.

    Args:
        probes: of all weights and activations.
        peaks: of each layer's input, the largest absolute value of each channel.
        recipe: what is in use already.
    """
    found: list[Outlier | None] = []
    for probe in probes:
        if isinstance(probe, WeightProbe):
            found += [_weight_channels(probe), _weight_tail(probe)]
        else:
            found += [_activation_tail(probe), _input_channels(probe, peaks, recipe)]
    known = [each for each in found if each is not None]
    return sorted(known, key=lambda each: -each.times)


@torch.no_grad()
def channel_peaks(prepared: nn.Module, calls: Sequence[Arguments]) -> dict[str, Tensor]:
    """Return the largest absolute value of each channel of what each layer reads, by its name."""
    model, peaks = copy_to_run(prepared), dict[str, Tensor]()
    for gm in find_regions(model).values():
        for node in gm.graph.nodes:
            if layer_type(module_of(gm, node)) is not None:
                gm.get_submodule(str(node.target)).register_forward_pre_hook(
                    partial(_watch, peaks, _name(gm, node))
                )
    for call in calls:
        model(*copied_to(device_of(model), call))
    return peaks


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    return call_name(gm, node)


def _watch(peaks: dict[str, Tensor], name: str, module: nn.Module, args: Any) -> None:
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.dim() < -channel_axis(as_layer(module)):
        return
    axis = x.dim() + channel_axis(as_layer(module))
    found = x.detach().abs().movedim(axis, 0).flatten(1).float().amax(dim=1).cpu()
    known = peaks.get(name)
    peaks[name] = found if known is None else torch.maximum(known, found)


def _weight_channels(probe: WeightProbe) -> Outlier | None:
    """Return channels that share a scale with narrower ones."""
    layer, forms = next(iter(probe.layers.items()))
    if forms[0].weight_spec.per_channel:
        return None
    peaks = output_rows(layer, layer.weight.detach()).abs().amax(dim=1).float()
    times, count = _wide(peaks)
    if times < _WIDE:
        return None
    advice = "weight_per_channel=True, or equalization=True"
    return Outlier(probe.name, "weights", f"{count} of {len(peaks)} channels wide", times, advice)


def _weight_tail(probe: WeightProbe) -> Outlier | None:
    """Return weights far from all others of their channel, where the range holds them."""
    layer, forms = next(iter(probe.layers.items()))
    rows = output_rows(layer, layer.weight.detach()).float()
    if probe.bits >= 8 or forms[0].weight_spec.range != "minmax" or rows.shape[1] < 64:
        return None
    times = (rows.abs().amax(dim=1) / rows.std(dim=1).clamp(min=1e-12)).max().item()
    if times < _SPIKE:
        return None
    advice = 'weight_range="mse" clips it'
    return Outlier(probe.name, "weights", "a weight far from its channel's, in σ", times, advice)


def _activation_tail(probe: ActivationProbe) -> Outlier | None:
    """Return values far outside of where 99.9 % are, where the range holds them."""
    worst: Outlier | None = None
    for tap in probe.group.taps:
        seen = tap.seen
        if any(observer.num_batches == 0 for observer in seen) or seen[0].axis is not None:
            continue
        statistics = statistics_of(seen)
        low, high = statistics.clamped(statistics.low), statistics.clamped(statistics.high)
        first, last = (statistics.output.quantile(each).item() for each in (1 - _INSIDE, _INSIDE))
        inside = max(last, 0.0) - min(first, 0.0)
        times = (max(high, 0.0) - min(low, 0.0)) / inside if inside > 0 else 0.0
        if times < _FAR or (worst is not None and times <= worst.times):
            continue
        clips = seen[0].spec.range in ("mse", "aciq", "percentile")
        advice = (
            f'activation_range="{seen[0].spec.range}" clips it already'
            if clips
            else 'activation_range="mse" clips it; with few bits, 8 bits here'
        )
        what = f"range {low:.3g} to {high:.3g}; 99.9 % within {first:.3g} to {last:.3g}"
        worst = Outlier(probe.name, "activations", what, times, advice)
    return worst


def _input_channels(
    probe: ActivationProbe, peaks: dict[str, Tensor], recipe: Recipe
) -> Outlier | None:
    """Return channels that share a scale with much narrower ones."""
    known = next((peaks[name] for name in probe.group.readers if name in peaks), None)
    is_one_scale = all(tap.seen[0].axis is None for tap in probe.group.taps)
    if known is None or not is_one_scale or len(known) < _FEWEST_CHANNELS:
        return None
    times, count = _wide(known)
    if times < _WIDE:
        return None
    advice = "8 bits here, or activation_per_channel=True" if recipe.smoothing else "smoothing=True"
    return Outlier(
        probe.name, "activations", f"{count} of {len(known)} channels wide", times, advice
    )


def _wide(peaks: Tensor) -> tuple[float, int]:
    """Return how wide the widest channel is beside the median of those in use; how many are so."""
    used = peaks[peaks > 0]
    if len(used) == 0:
        return 0.0, 0
    middle = used.median()
    return (used.max() / middle).item(), int((used >= _WIDE * middle).sum())
