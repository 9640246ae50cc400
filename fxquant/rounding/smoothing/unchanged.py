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


class SameResults:
    """What layers give in one call, kept while a graph is changed around them.

    Args:
        gm: the graph.
        layers: whose results are to stay.
        call: the arguments.
        max_bytes: of values in memory.
    """

    def __init__(
        self, gm: fx.GraphModule, layers: Sequence[fx.Node], call: Arguments, max_bytes: int | None
    ) -> None:
        self._gm, self._layers, self._call, self._max_bytes = gm, layers, call, max_bytes
        self._before = self._results()

    def require(self) -> None:
        """Raise where a layer's results now differ by more than rounding.

        Raises:
            PassError: they do.
        """
        for layer, one, other in zip(self._layers, self._before, self._results(), strict=True):
            is_known = torch.isfinite(one)
            found = sqnr(one[is_known], other[is_known]) if one[is_known].any() else math.inf
            if found < _LEAST.get(one.dtype, _LEAST_NARROW):
                name = target_name(self._gm, str(layer.target))
                raise PassError(
                    f"SmoothInputs: {name}: on the first batch its results are no longer what they "
                    f"were, {found:.0f} dB of signal over the difference: this is a fault of "
                    "fxquant's; convert without smoothing=True, and please report it"
                )

    def _results(self) -> list[Tensor]:
        """Return some values of each layer's result, the same ones whenever it is asked."""
        found = []
        with ValueStore(self._max_bytes) as store:
            stream = Stream(self._gm, [self._call], store)
            stream.demand(self._layers)
            for layer in self._layers:
                for (value,) in stream.values(layer):
                    flat = value.flatten()
                    found.append(flat[:: max(1, len(flat) // _MOST)].cpu())
        return found
