"""Fold an eval-mode batch norm into the layer before it.

Before:  conv = Conv2d(x); bn = BatchNorm2d(conv); return bn
After:   conv = Conv2d(x)  # folded: bn; return conv

W' = W · γ/√(σ² + ε),  b' = (b - μ) · γ/√(σ² + ε) + β          (report, I.C; ε is the module's own)

Between the two may stand what moves axes, if batch norm then works on that of the layer's outputs:

Before:  fc = Linear(x); flatten = fc.flatten(0, 1); bn = BatchNorm1d(flatten)
After:   fc = Linear(x)  # folded: bn; flatten = fc.flatten(0, 1)

A layer called several times is folded once for all calls behind which the same batch norm stands,
and gets a copy for every other batch norm, or none, behind its other calls. A layer whose output is
also used elsewhere is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxquant.capture.naming import target_name
from fxquant.graph.axes import axis_before, known_ranks
from fxquant.graph.chains import Chain, take_out
from fxquant.graph.operations import (
    batchnorm_of,
    data_input,
    is_batchnorm,
    is_layer,
    layer_of,
    operation_of,
)
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import Submodules, why_not_changeable
from fxquant.modules.batchnorm import (
    BatchNorm,
    fold_after,
    output_moments,
    scale_and_shift,
    why_not_affine,
)
from fxquant.modules.layers import Layer, num_outputs
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_AXIS: int | None = 1  # of a batch norm's input


@dataclass(frozen=True, eq=False)
class FoldBatchNorm(Pass):
    """Fold an eval-mode batch norm into the layer before it."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Fold where exact; record the reason on the batch norm elsewhere."""
        modified = False
        while _fold_all(gm):  # a second batch norm behind the first comes into reach
            modified = True
        return modified


def _fold_all(gm: fx.GraphModule) -> bool:
    ranks = known_ranks(gm)
    groups: dict[tuple[Layer, BatchNorm], list[Chain]] = {}
    folded = set()
    for chain, axis in _find_chains(gm, ranks):
        layer, batchnorm = chain.first, chain.last
        reason = _why_not(chain, axis, ranks.get(layer))
        if reason is not None:
            refuse(batchnorm, "not folded", reason)
            continue
        folded.add(str(batchnorm.target))
        key = (layer_of(gm, layer), batchnorm_of(gm, batchnorm))
        groups.setdefault(key, []).append(chain)
    if not groups:
        return False
    submodules = Submodules(gm)
    for chains in groups.values():
        _fold(gm, submodules.separate([chain.first for chain in chains]), chains)
    submodules.drop_unused(folded)
    return True


def _find_chains(gm: fx.GraphModule, ranks: dict[fx.Node, int]) -> Iterator[tuple[Chain, int]]:
    """Yield each batch norm behind a layer, and on which axis of the layer's result it works."""
    for batchnorm in list(gm.graph.nodes):
        nodes, axis = [batchnorm], _AXIS if is_batchnorm(gm, batchnorm) else None
        while axis is not None and (source := data_input(nodes[0])) is not None:
            nodes.insert(0, source)
            if is_layer(gm, source):
                yield Chain(gm, tuple(nodes)), axis
                break
            before = data_input(source)
            rank = ranks.get(before) if before is not None else None
            axis = axis_before(operation_of(gm, source), axis, rank)


def _fold(gm: fx.GraphModule, layer_module: Layer, chains: list[Chain]) -> None:
    """Fold one batch-norm module into one layer module, for all calls of the pair."""
    norm_module = batchnorm_of(gm, chains[0].last)
    fold_after(layer_module, *scale_and_shift(norm_module))
    for chain in chains:
        layer, batchnorm = chain.first, chain.last
        folded = (*record(layer).folded, target_name(gm, str(batchnorm.target)))
        annotate(layer, folded=folded, moments=output_moments(norm_module))
        take_out(batchnorm)


def _why_not(chain: Chain, axis: int, rank: int | None) -> str | None:
    layer, batchnorm = layer_of(chain.gm, chain.first), batchnorm_of(chain.gm, chain.last)
    return (
        chain.why_not_fusable()
        or why_not_affine(batchnorm)
        or why_not_changeable(layer)
        or why_not_changeable(batchnorm)
        or _why_axes_differ(layer, axis, rank)
        or _why_sizes_differ(layer, batchnorm)
    )


def _why_axes_differ(module: Layer, axis: int, rank: int | None) -> str | None:
    """Return why the layer's output channels are not on the axis that batch norm works on."""
    seen = "of unknown rank (prepare with example_inputs)" if rank is None else f"{rank}-D"
    if isinstance(module, nn.Linear) and rank != axis + 1:
        return f"batch norm works on axis {axis}, a linear layer on the last; its output is {seen}"
    if not isinstance(module, nn.Linear) and axis != 1:
        return f"batch norm works on axis {axis}, a convolution on axis 1; its output is {seen}"
    if not isinstance(module, nn.Linear) and rank == module.weight.dim() - 1:
        return (
            f"its output is {seen}, without a batch: batch norm would take positions for channels"
        )
    return None


def _why_sizes_differ(layer: Layer, batchnorm: BatchNorm) -> str | None:
    scale, _ = scale_and_shift(batchnorm)
    if scale.shape[0] != num_outputs(layer):
        return f"{num_outputs(layer)} output channels, but a batch norm over {scale.shape[0]}"
    return None
