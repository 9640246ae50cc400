"""Verbs on ONNX models whose nodes quantize: from what the exporter left to what runtimes look for.

The values stay the same. `onnx` is an optional dependency, and so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from fxquant.deploy.onnx_links import Links, is_a

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def split_biases(model: ModelProto) -> None:
    """Add the bias of a quantized `Gemm` in a node of its own, where the result stays in float.

    Before:  y = Gemm(DequantizeLinear(x), DequantizeLinear(w), bias)
    After:   y_product = Gemm(DequantizeLinear(x), DequantizeLinear(w)); y = Add(y_product, bias)

    In that form onnxruntime multiplies integers. Where the result is quantized it needs no help:
    there it rounds the bias to int32.
    """
    from onnx.helper import make_node

    links = Links(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        has_bias = node.op_type == "Gemm" and len(node.input) == 3
        if not has_bias or is_quantized(links, node):
            continue
        if all(is_dequantized(links, name) for name in node.input[:2]):
            bias, result = node.input.pop(), node.output.pop()
            node.output.append(f"{result}_product")
            nodes.append(make_node("Add", [node.output[0], bias], [result], f"{node.name}_bias"))
    replace_nodes(model, nodes)


def keep_in_float(model: ModelProto) -> None:
    """Keep onnxruntime from quantizing, on its own, a float layer between two quantized tensors.

    Before:  y = Conv(DequantizeLinear(x), w, bias); QuantizeLinear(y)
    After:   w_float = Add(w, DequantizeLinear(0)); y = Conv(DequantizeLinear(x), w_float, bias)
             QuantizeLinear(y)

    It would round the weight to int8, with one scale for all channels. It does so with constants
    only, and what is dequantized is no constant to it.
    """
    from onnx import TensorProto
    from onnx.helper import make_node, make_tensor

    links = Links(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    zero = "fxquant_zero"
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        is_layer = node.op_type in ("Conv", "ConvTranspose", "Gemm")
        is_float = is_layer and node.input[1] in constants
        if is_float and is_dequantized(links, node.input[0]) and is_quantized(links, node):
            weight, node.input[1] = node.input[1], f"{node.name}_weight"
            nodes.append(make_node("Add", [weight, zero], [node.input[1]], node.input[1]))
        nodes.append(node)
    if len(nodes) == len(model.graph.node):
        return
    model.graph.initializer.append(make_tensor(f"{zero}_integer", TensorProto.INT8, [], [0]))
    model.graph.initializer.append(make_tensor(f"{zero}_scale", TensorProto.FLOAT, [], [1.0]))
    source = [f"{zero}_integer", f"{zero}_scale"]
    replace_nodes(model, [make_node("DequantizeLinear", source, [zero], zero), *nodes])


def replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Let these be the nodes of the model, in this order."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def replace_initializers(
    model: ModelProto, dropped: Collection[str], new: Iterable[TensorProto]
) -> None:
    """Take out the initializers of these names, and put new ones in.

    One by one: protobuf copies several through a message, which ends at 2 GiB.
    """
    initializers = model.graph.initializer
    for index in reversed(range(len(initializers))):
        if initializers[index].name in dropped:
            del initializers[index]
    for tensor in new:
        initializers.append(tensor)


def is_dequantized(links: Links, name: str) -> bool:
    """Say whether `DequantizeLinear` computes the value."""
    return is_a(links.producer(name), "DequantizeLinear")


def is_quantized(links: Links, node: NodeProto) -> bool:
    """Say whether `QuantizeLinear` alone uses the node's result, behind a ReLU or not."""
    behind = links.readers(node.output[0])
    while len(behind) == 1 and is_a(behind[0], "Relu", "Clip"):
        behind = links.readers(behind[0].output[0])
    return len(behind) == 1 and is_a(behind[0], "QuantizeLinear")


def pack_weights(model: ModelProto) -> None:
    """Store the int8 weights that fit into 4 bits as INT4, two in a byte.

    Before:  w: int8; DequantizeLinear(w, …)
    After:   w_int4: int4; w = Cast(w_int4); DequantizeLinear(w, …)

    The `Cast` is done once, when a runtime loads the model. Without it onnxruntime finds no kernel
    for a convolution, and dequantizes the weights at every run.
    """
    from onnx import TensorProto
    from onnx.helper import make_node

    graph = model.graph
    packed: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        found = _packed(tensor)
        if found is not None:
            packed[tensor.name] = found
    casts = [
        make_node("Cast", [tensor.name], [name], f"{name}_cast", to=TensorProto.INT8)
        for name, tensor in packed.items()
    ]
    replace_initializers(model, packed.keys(), packed.values())
    replace_nodes(model, [*casts, *graph.node])


def _packed(tensor: TensorProto) -> TensorProto | None:
    """Return a weight as INT4, None for any other tensor."""
    import numpy as np
    from onnx import TensorProto
    from onnx.numpy_helper import to_array

    if tensor.data_type != TensorProto.INT8 or len(tensor.dims) < 2:
        return None
    values = to_array(tensor).reshape(-1)
    if values.size == 0 or values.min() < -8 or values.max() > 7:
        return None
    low, high = np.pad(values, (0, values.size % 2)).astype(np.uint8).reshape(-1, 2).T & 15
    return TensorProto(
        name=f"{tensor.name}_int4",
        dims=tensor.dims,
        data_type=TensorProto.INT4,
        raw_data=(low | high << 4).tobytes(),
    )


def name_batch(model: ModelProto) -> None:
    """Call the axis "batch" that the exporter left dynamic, under a name of its own."""
    graph = model.graph
    shapes = [value.type.tensor_type.shape for value in (*graph.input, *graph.output)]
    shapes += [value.type.tensor_type.shape for value in graph.value_info]
    names = [shape.dim[0].dim_param for shape in shapes if shape.dim and shape.dim[0].dim_param]
    for axis in (axis for shape in shapes for axis in shape.dim):
        if names and axis.dim_param == names[0]:
            axis.dim_param = "batch"


def name_inputs(model: ModelProto, names: Collection[str]) -> None:
    """Call the inputs by `names` again: one that is returned is "x_orig" to the exporter."""
    links = Links(model)
    for value in model.graph.input:
        given, name = value.name, value.name.removesuffix("_orig")
        if given in names or name not in names or links.producer(name) is not None:
            continue
        value.name = name
        for node in links.readers(given):
            inputs = [name if each == given else each for each in node.input]
            node.input[:] = inputs


def drop_notes(model: ModelProto) -> None:
    """Drop what the exporter noted of its own work.

    Among it is the source code of the model, and where on this machine it lies.
    """
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del each.metadata_props[:]
    for initializer in graph.initializer:
        del initializer.metadata_props[:]
