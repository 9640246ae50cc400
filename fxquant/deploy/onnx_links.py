"""Who computes each value of an ONNX model, who reads it, and which are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

PAIR = ("QuantizeLinear", "DequantizeLinear")
_SAME_VALUES = ("Identity", "Cast")


class Links:
    """The nodes of a model, those of `If`, `Loop` and `Scan` among them, and what joins them.

    `nodes` holds all of them in order, `outputs` the names of what graphs give, `functions` those
    of the model's own functions. Values have one name each in the whole model, as ONNX asks.
    """

    def __init__(self, model: ModelProto) -> None:
        graphs = list(_graphs(model.graph))
        self.nodes: list[NodeProto] = [node for graph in graphs for node in graph.node]
        self.outputs = {value.name for graph in graphs for value in graph.output}
        self.functions = {function.name for function in model.functions}
        self._tensors: dict[str, TensorProto] = {
            tensor.name: tensor for graph in graphs for tensor in graph.initializer
        }
        self._producers: dict[str, NodeProto] = {}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.output:
                self._producers[name] = node
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            if is_a(node, "Constant") and (constant := _constant(node)) is not None:
                self._tensors[node.output[0]] = constant

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that computes the value; None for inputs and initializers."""
        return self._producers.get(name)

    def readers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read the value, each as often as it does."""
        return self._readers.get(name, [])

    def constant(self, name: str) -> TensorProto | None:
        """Return the initializer or constant that the value is, behind a cast or not."""
        producer = self.producer(name)
        while is_a(producer, *_SAME_VALUES):
            name = producer.input[0]
            producer = self.producer(name)
        return self._tensors.get(name)

    def array(self, name: str) -> np.ndarray[Any, Any] | None:
        """Return the values of the initializer or constant of that name."""
        from onnx.numpy_helper import to_array

        tensor = self.constant(name)
        return None if tensor is None else to_array(tensor)

    def element_type(self, name: str) -> int | None:
        """Return the type of the value's elements, None where no node or tensor says it."""
        producer = self.producer(name)
        if is_a(producer, "Cast"):
            return int(attribute(producer, "to"))
        if is_a(producer, "QuantizeLinear"):
            return self.quantized_type(producer)
        tensor = self.constant(name)
        return None if tensor is None else tensor.data_type

    def quantized_type(self, quantize: NodeProto) -> int | None:
        """Return the type that `QuantizeLinear` gives, None where nothing says it."""
        zero_point = input_of(quantize, 2)
        if zero_point:
            return self.element_type(zero_point)
        return attribute(quantize, "output_dtype") or None  # 0 is "undefined"


def input_of(node: NodeProto, position: int) -> str:
    """Return the name of a node's input, "" where it is left out."""
    return node.input[position] if position < len(node.input) else ""


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    from onnx.helper import get_attribute_value

    found = [each for each in node.attribute if each.name == name]
    return get_attribute_value(found[0]) if found else default


def count(tensor: TensorProto) -> int:
    """Return how many elements a tensor has."""
    return math.prod(tensor.dims)


def is_a(node: NodeProto | None, *op_types: str) -> TypeGuard[NodeProto]:
    """Say whether there is a node, of one of these operators of ONNX's own."""
    return node is not None and node.op_type in op_types and is_standard(node)


def is_standard(node: NodeProto) -> bool:
    """Say whether ONNX itself defines the node's operator."""
    return node.domain in ("", "ai.onnx")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Return a graph and those in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for each in node.attribute:
            for body in (*([each.g] if each.HasField("g") else []), *each.graphs):
                yield from _graphs(body)


def _constant(node: NodeProto) -> TensorProto | None:
    """Return what a `Constant` gives, None where it is no tensor of numbers."""
    import numpy as np
    from onnx.numpy_helper import from_array

    (given,) = node.attribute
    value: Any = attribute(node, given.name)
    if given.name == "value":
        tensor: TensorProto = value
        return tensor
    if given.name in ("value_float", "value_floats"):
        return from_array(np.asarray(value, np.float32))
    is_whole = given.name in ("value_int", "value_ints")
    return from_array(np.asarray(value, np.int64)) if is_whole else None
