"""What went by in front of layers: the extremes of each channel, and some rows of products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.modules.layers import Layer, num_groups
from fxquant.rounding.rows import sample_rows
from fxquant.rounding.smoothing.inputs import LayerInput
from fxquant.streaming.distributed import gather_objects

_ROWS, _ROWS_PER_BATCH = 1024, 64
_MAX_VALUES = 1 << 22  # of all rows: a depthwise layer of 960 channels has 8,640 a row


@dataclass(frozen=True)
class Seen:
    """Over all ranks."""

    low: Tensor
    """(channels,)."""
    high: Tensor
    rows: Tensor
    """Inputs under a layer's taps, as `sample_rows` gives them: (groups, rows, taps · in/groups);
    of rank 0."""

    @property
    def channels(self) -> Tensor:
        """The same values by channel: (channels, number)."""
        groups, number, _ = self.rows.shape
        by_tap = self.rows.reshape(groups, number, -1, len(self.low) // groups)
        return by_tap.movedim(3, 1).reshape(len(self.low), -1)


def look_at(each: LayerInput, values: Iterator[tuple[Tensor, ...]]) -> Seen | None:
    """Return what goes by; None if there is nothing, or something is not finite.

    Args:
        each: the tensor.
        values: of `each.rows_from`, of each batch.
    """
    layer, _ = each.weights()[0]
    generator = torch.Generator().manual_seed(0)
    lows, highs, rows = [], [], []
    for value, *results in values:
        flat = value.movedim(each.axis, -1).reshape(-1, value.shape[each.axis]).to(torch.float32)
        if len(flat):
            lows.append(flat.amin(dim=0))
            highs.append(flat.amax(dim=0))
            rows.append(_rows(layer, value, results, generator))
    own = None
    if lows:
        low, high = torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)
        own = [low.cpu(), high.cpu(), _thinned(torch.cat(rows, dim=1)).cpu()]
    ranks = [found for found in gather_objects(own, "extremes of channels") if found is not None]
    if not ranks:
        return None
    low = torch.stack([found[0] for found in ranks]).amin(dim=0)
    high = torch.stack([found[1] for found in ranks]).amax(dim=0)
    return Seen(low, high, ranks[0][2]) if torch.isfinite(high - low).all() else None


def _rows(layer: Layer, value: Tensor, results: list[Tensor], generator: torch.Generator) -> Tensor:
    if not results:
        flat = value.reshape(-1, value.shape[-1])
        return flat[:: max(1, len(flat) // _ROWS_PER_BATCH)].to(torch.float32)[None]
    is_batch = value.dim() == layer.weight.dim()
    per_sample = max(1, _ROWS_PER_BATCH // (len(value) if is_batch else 1))
    rows, _ = sample_rows(layer, value, results[0], per_sample, generator)
    return rows


def _thinned(rows: Tensor) -> Tensor:
    wanted = max(1, min(_ROWS, _MAX_VALUES // max(1, rows[:, 0].numel())))
    return rows[:, :: max(1, rows.shape[1] // wanted)]


def spread(layer: Layer, channels: Tensor) -> Tensor:
    """Return values of input channels, (in,), as they lie in a row: (groups, 1, taps · in)."""
    taps = layer.weight[0, 0].numel() if layer.weight.dim() > 2 else 1
    by_group = channels.reshape(num_groups(layer), 1, 1, -1)
    return by_group.expand(-1, 1, taps, -1).flatten(2)
