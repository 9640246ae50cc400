"""Verbs on graphs in which some results are integers: `quantize` and `dequantize` nodes.

What a node's integers stand for is in its record (`integers`), and so is the node of the
fake-quantized graph whose value it computes (`value_of`).
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.chains import Chain
from fxquant.graph.operations import operation_of
from fxquant.graph.records import annotate, record
from fxquant.int8 import kernels
from fxquant.numerics.affine import AffineNumbers


def quantize(x: fx.Node, integers: AffineNumbers, value_of: str) -> fx.Node:
    """Return a new node that turns `x` into integers, at the graph's point of insertion."""
    arguments = (x, integers.scale, integers.zero_point, integers.grid.quant_max)
    node = x.graph.call_function(kernels.quantize, arguments)
    annotate(node, integers=integers, value_of=value_of)
    return node


def dequantize(integers: fx.Node) -> fx.Node:
    """Return a new node behind `integers` that turns them into floating point."""
    known = record(integers)
    assert known.integers is not None
    with integers.graph.inserting_after(integers):
        arguments = (integers, known.integers.scale, known.integers.zero_point)
        node = integers.graph.call_function(kernels.dequantize, arguments)
    annotate(node, value_of=known.value_of)
    return node


def integers_behind(node: object) -> fx.Node | None:
    """Return the node whose integers `node` turns into floating point, None if it does not."""
    if isinstance(node, fx.Node) and node.target is kernels.dequantize:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source
    return None


def affine_of(node: fx.Node) -> AffineNumbers:
    """Return what the integers of `node` stand for."""
    known = record(node).integers
    assert known is not None, f"{node.name} computes no integers"
    return known


def is_quantize(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node of `gm` turns floating point into integers."""
    return node.target is kernels.quantize


def mark_integers(node: fx.Node, integers: AffineNumbers, value_of: str) -> None:
    """Record that `node` computes integers now, and turn them into floats for all its users."""
    annotate(node, integers=integers, value_of=value_of)
    users = list(node.users)
    in_float = dequantize(node)
    for user in users:
        user.replace_input_with(node, in_float)


def replace_chain(chain: Chain, by: fx.Node) -> None:
    """Let `by` take the place of the chain; what asks for a type asks for that of the float."""
    chain.replace(by)
    asking = [each for each in by.users if operation_of(chain.gm, each).kind in ("type", "blank")]
    if asking and record(by).integers is not None:
        in_float = dequantize(by)
        for each in asking:
            each.replace_input_with(by, in_float)


def drop_unused_dequantize(gm: fx.GraphModule) -> bool:
    """Delete the `dequantize` nodes that nobody uses; return whether there were any."""
    unused = [node for node in gm.graph.nodes if integers_behind(node) and not node.users]
    for node in unused:
        gm.graph.erase_node(node)
    return bool(unused)
