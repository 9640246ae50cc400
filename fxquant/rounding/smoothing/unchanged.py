"""The proof, on the caller's data, that smoothing changed nothing: layers give what they gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxquant.capture.naming import target_name
from fxquant.errors import PassError
from fxquant.numerics.decibels import sqnr
from fxquant.streaming.running import Arguments
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore

_MOST = 1 << 16  # values of each result
_LEAST = {torch.float32: 60.0, torch.float64: 60.0}  # dB; rounding alone leaves 100
_LEAST_NARROW = 20.0  # dB; bfloat16 alone leaves 40


def results_of(
    gm: fx.GraphModule, layers: Sequence[fx.Node], call: Arguments, max_bytes: int | None
) -> list[Tensor]:
    """Return some values of each layer's result in one call, the same ones whenever it is asked."""
    found = []
    with ValueStore(max_bytes) as store:
        stream = Stream(gm, [call], store)
        stream.demand(layers)
        for layer in layers:
            for (value,) in stream.values(layer):
                flat = value.flatten()
                found.append(flat[:: max(1, len(flat) // _MOST)].cpu())
    return found


def require_same(
    gm: fx.GraphModule, layers: Sequence[fx.Node], before: list[Tensor], after: list[Tensor]
) -> None:
    """Raise where a layer's results differ by more than rounding.

    Raises:
        PassError: they do.
    """
    for layer, one, other in zip(layers, before, after, strict=True):
        is_known = torch.isfinite(one)
        found = sqnr(one[is_known], other[is_known]) if one[is_known].any() else math.inf
        if found < _LEAST.get(one.dtype, _LEAST_NARROW):
            name = target_name(gm, str(layer.target))
            raise PassError(
                f"SmoothInputs: {name}: on the first batch its results are no longer what they "
                f"were, {found:.0f} dB of signal over the difference: this is a fault of "
                "fxquant's; convert without smoothing=True, and please report it"
            )
