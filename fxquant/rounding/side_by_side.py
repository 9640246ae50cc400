"""The float graph and the quantized one, streamed side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx

from fxquant.calibration.batching import num_samples
from fxquant.rounding.subgraphs import Call, Subgraph
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore


class SideBySide:
    """Both graphs on the same data, each node of each run once for each batch.

    Args:
        gm: the quantized graph.
        reference: the float one; its nodes have the same names.
        batches: the arguments of each call of `gm`.
        reference_batches: those of `reference`.
        subgraphs: in the order in which `rows` or `skip` will be called for them.
        store: for the values of both.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        reference: fx.GraphModule,
        batches: Sequence[tuple[Any, ...]],
        reference_batches: Sequence[tuple[Any, ...]],
        subgraphs: Sequence[Subgraph],
        store: ValueStore,
    ) -> None:
        self._nodes = {node.name: node for node in reference.graph.nodes}
        self._num_samples = sum(num_samples(batch) for batch in batches)
        self._quantized = Stream(gm, batches, store)
        self._float = Stream(reference, reference_batches, store)
        for subgraph in subgraphs:
            self._quantized.demand(self._inputs(subgraph))
            self._float.demand(self._float_nodes(subgraph))

    def num_samples(self, subgraph: Subgraph) -> int:
        """Return how many samples the layer sees, over all its calls."""
        return self._num_samples * len(subgraph.calls)

    def rows(self, subgraph: Subgraph) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the layer's quantized input and its float target, of every batch and call."""
        quantized = self._quantized.values(*self._inputs(subgraph))
        floats = self._float.values(*self._float_nodes(subgraph))
        for inputs, wanted in zip(quantized, floats, strict=True):
            targets, stand_ins = wanted[: len(subgraph.calls)], wanted[len(subgraph.calls) :]
            yield from zip((*inputs, *stand_ins), targets, strict=True)

    def skip(self, subgraph: Subgraph) -> None:
        """Go past a layer that is finished."""
        self._quantized.skip(*self._inputs(subgraph))
        self._float.skip(*self._float_nodes(subgraph))

    def _inputs(self, subgraph: Subgraph) -> list[fx.Node]:
        final, _ = _split(subgraph)
        return [self._quantized.inputs(call.node)[0] for call in final]

    def _float_nodes(self, subgraph: Subgraph) -> list[fx.Node]:
        """Return all targets, then the inputs of those calls whose quantized ones come too late."""
        final, ahead = _split(subgraph)
        targets = [self._nodes[call.output.name] for call in (*final, *ahead)]
        stand_ins = [self._float.inputs(self._nodes[call.node.name])[0] for call in ahead]
        return targets + stand_ins


def _split(subgraph: Subgraph) -> tuple[list[Call], list[Call]]:
    """Return the calls whose input is final when the layer's turn comes, and the others."""
    final = [call for call in subgraph.calls if call.node not in subgraph.ahead]
    return final, [call for call in subgraph.calls if call.node in subgraph.ahead]
