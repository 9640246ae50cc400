"""Let calls that keep values work on integers: move `dequantize` from before them to behind them.

Before:  dequantize = kernels.dequantize(quantize, 0.02, 0); pool = MaxPool2d(dequantize)
After:   pool = kernels.max_pool2d(quantize, …)                      # uint8
         dequantize = kernels.dequantize(pool, 0.02, 0)

Reshapes, slices, and concatenations of integers with the same parameters are the calls that they
were, and so are questions for a shape; padding with zero pads with the zero-point. What has no
kernel for uint8 works on the integers in float32, which holds them exactly: `widen`, the call,
`narrow`. A call whose result is changed in place and read again stays in float.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.graph.chains import Chain, insert_after
from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import operation_of, sources_of_values
from fxquant.graph.records import annotate, value_of
from fxquant.int8 import kernels
from fxquant.int8.integers import (
    affine_of,
    drop_unused_dequantize,
    integers_behind,
    mark_integers,
)
from fxquant.int8.kernel_arguments import max_pool2d_arguments
from fxquant.numerics.affine import AffineNumbers
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class SinkDequantize(Pass):
    """Let calls that keep values work on integers."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Move each `dequantize` as far down as it goes."""
        changed = changed_while_read(gm)
        nodes = [node for node in gm.graph.nodes if node not in changed]
        modified = [_sink(gm, node) for node in nodes]
        return any(modified) | drop_unused_dequantize(gm)


def _sink(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Let `node` work on integers, if all that it works on are, with the same parameters."""
    operation = operation_of(gm, node)
    is_moved = _read_shape(node, operation.shape_of)
    reads_shape = operation.kind in ("rank", "shape")
    sources = node.all_input_nodes[:1] if reads_shape else sources_of_values(gm, node)
    integers = {each: behind for each in sources if (behind := integers_behind(each)) is not None}
    known = {affine_of(each) for each in integers.values()}
    if len(integers) < len(set(sources)) or len(known) != 1:
        return is_moved
    (affine,) = known
    if reads_shape:
        _read(node, integers)
        return True
    if operation.kind == "split":
        return _split_integers(gm, node, integers, affine)
    if operation.concatenated or operation.moves_only:
        _read(node, integers)
        mark_integers(node, affine, value_of(node))
    else:
        _select_integers(gm, node, integers, affine, operation.padding)
    return True


def _read(node: fx.Node, integers: dict[fx.Node, fx.Node]) -> None:
    """Let `node` read the integers instead of what they stand for."""
    for source, each in integers.items():
        node.replace_input_with(source, each)


def _read_shape(node: fx.Node, other: fx.Node | None) -> bool:
    """Let `node`, which takes nothing but the shape of `other`, take that of its integers."""
    integers = integers_behind(other)
    if other is None or integers is None:
        return False
    node.replace_input_with(other, integers)
    return True


def _split_integers(
    gm: fx.GraphModule, node: fx.Node, integers: dict[fx.Node, fx.Node], affine: AffineNumbers
) -> bool:
    parts = [user for user in node.users if operation_of(gm, user).kind != "shape"]  # not len
    if not all(each.target is operator.getitem for each in parts):
        return False
    if not all(operation_of(gm, each).keeps_values for each in parts):
        return False
    _read(node, integers)
    annotate(node, integers=affine)
    for part in parts:
        mark_integers(part, affine, value_of(part))
    return True


def _select_integers(
    gm: fx.GraphModule,
    node: fx.Node,
    integers: dict[fx.Node, fx.Node],
    affine: AffineNumbers,
    padding: tuple[Any, ...] | None,
) -> None:
    """Let a pool or a padding work on integers."""
    (x,) = integers.values()
    pool = max_pool2d_arguments(gm, node)
    with gm.graph.inserting_before(node):
        if pool is not None:
            result = gm.graph.call_function(kernels.max_pool2d, (x, *pool))
        elif padding is not None:
            arguments = (x, list(padding), affine.zero_point)
            result = gm.graph.call_function(kernels.pad, arguments)
        else:
            _widen(node, integers, affine)
            return
    Chain.behind(gm, node).replace(result)
    mark_integers(result, affine, value_of(result))


def _widen(node: fx.Node, integers: dict[fx.Node, fx.Node], affine: AffineNumbers) -> None:
    """Let `node` work on the integers in float32."""
    (x,) = integers.values()
    name, users = value_of(node), list(node.users)
    with node.graph.inserting_before(node):
        wide = node.graph.call_function(kernels.widen, (x, affine.zero_point))
    _read(node, {source: wide for source in integers})
    with insert_after(node):
        ends = (1.0, affine.zero_point, 0, affine.grid.quant_max)
        result = node.graph.call_function(kernels.narrow, (node, *ends))
    for user in users:
        user.replace_input_with(node, result)
    annotate(node, value_of="")
    mark_integers(result, affine, name)
