"""Learn the rounding of each weight, layer by layer, on real data: AdaRound and beyond.

Before:  conv = QuantizedConv2d(x)     # each weight rounded to nearest
After:   conv = QuantizedConv2d(x)     # each rounded so that the layer's output is closest

The float graph and the quantized one run side by side (`fxquant.streaming.stream`), each node once.
At a quantized layer the inputs that the quantized graph gives it and the float graph's output
behind the activation are at hand: rows of them are drawn (`fxquant.rounding.pool`), the rounding is
learned (`fxquant.rounding.learners`), and the streams go on with the new weight. What was learned
is kept only if it is no worse than rounding to nearest on samples that it did not learn from.

With `parallel=True` inputs are the float network's, as if each layer were quantized alone.
Under `torch.distributed` each rank runs on its own batches, and gradients are summed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx
from tqdm import tqdm

from fxquant.capture.naming import target_name
from fxquant.errors import CalibrationError
from fxquant.graph.rewriting import require_same_nodes
from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import LearnedRounding
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.learners import Learned, learn
from fxquant.rounding.pool import RowPool
from fxquant.rounding.side_by_side import SideBySide
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs
from fxquant.streaming.checkpoint import Checkpoint
from fxquant.streaming.distributed import object_from_first_rank, rank, sum_over_ranks
from fxquant.streaming.identity import identity_of
from fxquant.streaming.value_store import ValueStore

_logger = logging.getLogger("fxquant")


@dataclass(frozen=True, eq=False)
class ReconstructRounding(Pass):
    """Learn the rounding of each weight, layer by layer."""

    reference: fx.GraphModule
    """The float model: the same graph before quantization, without observers."""
    batches: Sequence[tuple[Any, ...]]
    """The arguments of each call, on any device."""
    options: Reconstruction = field(default_factory=Reconstruction)
    checkpoint: str | os.PathLike[str] | None = None
    """A folder in which finished layers are kept, and looked for."""
    progress: bool | None = None
    """Show a bar; None means where there is a terminal."""
    reference_batches: Sequence[tuple[Any, ...]] | None = None
    """What the reference is called with, where something in front of the graph is quantized, so
    that `batches` differ; None: the same."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data, or the reference is not of the same graph."""
        if len(self.batches) == 0:
            raise CalibrationError("ReconstructRounding: `batches` is empty: give at least one")
        nodes = [
            node
            for subgraph in find_subgraphs(graph_module)
            for call in subgraph.calls
            for node in (call.node, call.output)
        ]
        require_same_nodes("ReconstructRounding", self.reference, nodes)

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Reconstruct the layers in turn; modified if a single weight changed."""
        subgraphs = find_subgraphs(gm)
        if self.options.parallel:
            subgraphs = [_all_ahead(subgraph) for subgraph in subgraphs]
        checkpoint = None
        if self.checkpoint is not None:
            data = [self.batches]
            if self.reference_batches is not None:
                data.append(self.reference_batches)
            identity = identity_of(gm, self.reference, self.options, data)
            checkpoint = Checkpoint(self.checkpoint, identity, writes=rank() == 0)
        with ValueStore(self.options.max_bytes) as store, self._bar(subgraphs) as bar:
            sides = SideBySide(
                gm, self.reference, self.batches, self._reference_batches(), subgraphs, store
            )
            changed = False
            for number, subgraph in enumerate(subgraphs):
                name = target_name(gm, subgraph.name)
                bar.set_description(name)
                before = subgraph.layer.weight, subgraph.layer.bias
                saved = _load(checkpoint, number, subgraph)
                if saved:
                    sides.skip(subgraph)
                    _restore(subgraph.layer, saved)
                else:
                    self._reconstruct(sides, subgraph, number)
                    if checkpoint is not None:
                        checkpoint.save(number, subgraph.name, _state(subgraph.layer))
                learned = subgraph.layer.rounding
                assert learned is not None
                bar.set_postfix_str(f"{name} {learned}")
                bar.update(_cost(subgraph))
                _logger.info("%s: %s", name, learned)
                changed |= not torch.equal(before[0], subgraph.layer.weight)
                changed |= before[1] is not subgraph.layer.bias
        return changed

    def _reference_batches(self) -> Sequence[tuple[Any, ...]]:
        return self.batches if self.reference_batches is None else self.reference_batches

    def _bar(self, subgraphs: list[Subgraph]) -> Any:
        return tqdm(
            total=sum(_cost(subgraph) for subgraph in subgraphs),
            disable=None if self.progress is None else not self.progress,
            bar_format="{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining} {desc}{postfix}",
        )

    def _reconstruct(self, sides: SideBySide, subgraph: Subgraph, number: int) -> None:
        start = time.perf_counter()
        layer = subgraph.layer
        reference = cast(Layer, self.reference.get_submodule(subgraph.name))
        pool = RowPool(subgraph.name, reference, sides.num_samples(subgraph), self.options, number)
        for inputs, targets in sides.rows(subgraph):
            pool.add(inputs, targets)
        rounding = Rounding(layer, reference)
        learned_from, judged = pool.rows(rounding.weight, reference.bias)
        learned = learn(rounding, learned_from, subgraph.activation, self.options)
        errors = [
            sum_over_ranks(each.error(rounding, judged, subgraph.activation))
            for each in (Learned.nearest(rounding), learned)
        ]
        signal = errors[0][1].item()
        result = LearnedRounding(
            method=self.options.method,
            steps=self.options.steps if self.options.method != "gram" else 0,
            seconds=time.perf_counter() - start,
            error_nearest=errors[0][0].item() / max(signal, 1e-300),
            error_learned=errors[1][0].item() / max(signal, 1e-300),
        )
        if result.kept:
            learned.write_to(layer, rounding)
        layer.weight_sqnr = sqnr(reference.weight.detach().float(), layer.weight.float())
        layer.rounding = result


def _all_ahead(subgraph: Subgraph) -> Subgraph:
    """Return the layer as one whose inputs are all the float network's."""
    return replace(subgraph, ahead=frozenset(call.node for call in subgraph.calls))


def _cost(subgraph: Subgraph) -> int:
    """Return about how long a layer takes, in weights."""
    return subgraph.layer.weight_integers.numel() + 100_000


def _load(checkpoint: Checkpoint | None, number: int, subgraph: Subgraph) -> dict[str, Any] | None:
    """Return what the checkpoint of rank 0 holds of the layer."""
    if checkpoint is None:
        return None
    saved = checkpoint.load(number, subgraph.name) if rank() == 0 else None
    return cast("dict[str, Any] | None", object_from_first_rank(saved))


def _state(layer: Any) -> dict[str, Any]:
    return {
        "integers": layer.weight_integers.cpu(),
        "scale": layer.weight_scale.cpu(),
        "bias": None if layer.bias is None else layer.bias.detach().cpu(),
        "sqnr": layer.weight_sqnr,
        "rounding": vars(layer.rounding),
    }


def _restore(layer: Any, saved: dict[str, Any]) -> None:
    layer.weight_integers.copy_(saved["integers"])
    layer.weight_scale.copy_(saved["scale"])
    if saved["bias"] is not None:
        layer.set_bias(saved["bias"].to(layer.weight_integers.device))
    layer.weight_sqnr = saved["sqnr"]
    layer.rounding = LearnedRounding(**saved["rounding"])
