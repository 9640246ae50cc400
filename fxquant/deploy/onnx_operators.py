"""Operators that onnxruntime computes on integers, in place of equal ones that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.deploy.onnx_graph import (
    is_dequantized,
    is_quantized,
    replace_initializers,
    replace_nodes,
)
from fxquant.deploy.onnx_links import Links, attribute, input_of, is_a

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, TensorShapeProto

    Shapes = dict[str, TensorShapeProto]


def average_globally(model: ModelProto) -> None:
    """Write the mean over all places of a quantized map as `GlobalAveragePool`.

    Before:  y = ReduceMean(DequantizeLinear(x), axes=[2, 3])
    After:   y = GlobalAveragePool(DequantizeLinear(x))

    Where the mean drops its axes, a `Squeeze` does so behind it.
    """
    import numpy as np
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    links, shapes = Links(model), _shapes(model)
    nodes: list[NodeProto] = []
    given: set[str] = set()
    for node in model.graph.node:
        axes = _places(links, shapes, node)
        if not axes:
            nodes.append(node)
            continue
        (result,) = node.output
        given.update(node.input[1:])
        if attribute(node, "keepdims", 1):
            nodes.append(make_node("GlobalAveragePool", node.input[:1], [result], node.name))
            continue
        pooled, dropped = f"{result}_pooled", f"{result}_axes"
        model.graph.initializer.append(from_array(np.asarray(axes), dropped))
        nodes.append(make_node("GlobalAveragePool", node.input[:1], [pooled], node.name))
        nodes.append(make_node("Squeeze", [pooled, dropped], [result], f"{node.name}_squeeze"))
    replace_nodes(model, nodes)
    # onnxruntime warns of what nothing reads.
    left = Links(model)
    replace_initializers(model, {name for name in given if not left.readers(name)}, ())


def _places(links: Links, shapes: Shapes, node: NodeProto) -> list[int]:
    """Return the axes of a mean over all places of a quantized map; [] of any other node."""
    if not is_a(node, "ReduceMean") or not is_dequantized(links, node.input[0]):
        return []
    given = links.array(input_of(node, 1))
    if given is None or node.input[0] not in shapes:
        return []
    rank = len(shapes[node.input[0]].dim)
    axes = sorted(int(axis) % rank for axis in given)
    return axes if axes == list(range(2, rank)) else []


def widen_biases(model: ModelProto) -> None:
    """Give a bias a second axis where onnxruntime would make a `Gemm` in float of its addition.

    Before:  z = Add(MatMul(DequantizeLinear(x), DequantizeLinear(w)), bias)   # bias: (out,)
    After:   z = Add(MatMul(DequantizeLinear(x), DequantizeLinear(w)), row)    # row: (1, out)

    It does so with biases of one axis where the product has three axes or more, all of known
    lengths. Where the sum is quantized that `Gemm` works on integers.
    """
    links, shapes = Links(model), _shapes(model)
    biases = {each.name: each for each in model.graph.initializer if len(each.dims) == 1}
    rows: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if not is_a(node, "Add") or is_quantized(links, node):
            continue
        product, bias = node.input if node.input[1] in biases else reversed(node.input)
        if bias in biases and _is_long_product(links, shapes, product):
            rows[bias] = _row(biases[bias])
            node.input[:] = [product, rows[bias].name]
    read = {name for node in model.graph.node for name in node.input}
    replace_initializers(model, rows.keys() - read, rows.values())


def _is_long_product(links: Links, shapes: Shapes, name: str) -> bool:
    """Say whether the value is a product of quantized tensors, of three or more known lengths."""
    product = links.producer(name)
    if not is_a(product, "MatMul") or name not in shapes:
        return False
    weight = links.producer(product.input[1])
    source = weight.input[0] if is_a(weight, "Transpose") else product.input[1]
    lengths = shapes[name].dim
    return (
        is_dequantized(links, product.input[0])
        and is_dequantized(links, source)
        and len(lengths) > 2
        and all(length.HasField("dim_value") for length in lengths)
    )


def _row(bias: TensorProto) -> TensorProto:
    """Return a vector as a matrix of one row."""
    from onnx import TensorProto

    row = TensorProto()
    row.CopyFrom(bias)
    row.name, row.dims[:] = f"{bias.name}_row", [1, *bias.dims]
    return row


def _shapes(model: ModelProto) -> Shapes:
    """Return the shapes that the model tells of its values."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    return {value.name: value.type.tensor_type.shape for value in values}
