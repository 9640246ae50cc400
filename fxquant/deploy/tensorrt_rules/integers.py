"""How QuantizeLinear and DequantizeLinear may look.

Sources: "Explicit Quantization" and "Working with Quantized Types" of TensorRT's documentation,
and what its parser asserts (`QuantDequantLinearHelper` in onnxOpImporters.cpp of onnx-tensorrt,
10.1 and 10.15).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fxquant.deploy.onnx_links import PAIR, Links, count, input_of, is_a
from fxquant.deploy.tensorrt_rules.violation import Violation, name_of

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

_TYPES = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")


def pair_nodes(links: Links) -> Iterator[NodeProto]:
    """Return the nodes that quantize and dequantize."""
    return (node for node in links.nodes if is_a(node, *PAIR))


def _types(links: Links) -> Iterator[Violation]:
    """Find integers that are not int8: TensorRT's are signed ("Working with Quantized Types").

    10.1 refuses uint8. 10.15 warns and takes int8 in its place, so that all above 127 is clipped.
    Where the zero-point is left out, ONNX means uint8 and the parser int8.
    """
    from onnx import TensorProto

    for node in pair_nodes(links):
        quantizes = is_a(node, "QuantizeLinear")
        found = links.quantized_type(node) if quantizes else links.element_type(node.input[0])
        if found is None and quantizes and not input_of(node, 2):
            yield Violation(
                name_of(node),
                "types",
                "no zero-point, which is uint8 to ONNX and int8 to TensorRT",
                "give a zero-point 0 of type int8",
            )
        if found is None or found == TensorProto.INT32:  # biases have a rule of their own
            continue
        name = TensorProto.DataType.Name(found)
        if name not in _TYPES and (quantizes or links.constant(node.input[0]) is not None):
            yield Violation(
                name_of(node),
                "types",
                f"{node.op_type} of {name}",
                "quantize to INT8: Recipe(target='tensorrt')",
            )


def _zero_points(links: Links) -> Iterator[Violation]:
    """Find zero-points that are not 0: only symmetric quantization is taken (parser, guide)."""
    for node in pair_nodes(links):
        name = input_of(node, 2)
        if not name:
            continue
        values = links.array(name)
        if values is None or values.any():
            found = "is computed" if values is None else f"is {_range(values)}"
            yield Violation(
                name_of(node),
                "zero-points",
                f"the zero-point {found}",
                "make it 0: Recipe(target='tensorrt')",
            )


def _scales(links: Links) -> Iterator[Violation]:
    """Find scales that are no positive constants (operators Quantize and Dequantize, parser)."""
    import numpy as np

    for node in pair_nodes(links):
        values = links.array(node.input[1])
        if values is None:
            yield Violation(
                name_of(node),
                "scales",
                f"the scale {node.input[1]} is computed",
                "write it as an initializer: dynamic quantization is not taken",
            )
        elif not (values.size and np.isfinite(values).all() and (values > 0).all()):
            yield Violation(
                name_of(node),
                "scales",
                f"the scale is {_range(values)}",
                "make it positive, for each channel",
            )


def _activations(links: Links) -> Iterator[Violation]:
    """Find activations with several scales: the parser takes these for weights' (guide, parser)."""
    for node in pair_nodes(links):
        scale = links.constant(node.input[1])
        data = source_of(links, node)
        if scale is not None and count(scale) > 1 and links.constant(data) is None:
            if is_a(node, "DequantizeLinear") and is_a(links.producer(node.input[0]), PAIR[0]):
                continue  # said of the node in front
            yield Violation(
                name_of(node),
                "activations",
                f"{count(scale)} scales for {data}, which is no constant",
                "use one scale for each activation: per_channel=False",
            )


def _pairs(links: Links) -> Iterator[Violation]:
    """Find what reads or makes integers beside the pair: no other operator takes INT8.

    operators.md lists INT8 for DequantizeLinear, and among all others for Attention and Gelu only.
    """
    for node in pair_nodes(links):
        if is_a(node, "QuantizeLinear"):
            for reader in links.readers(node.output[0]):
                if not is_a(reader, "DequantizeLinear"):
                    yield Violation(
                        name_of(node),
                        "pairs",
                        f"{reader.op_type} {name_of(reader)} reads its integers",
                        "let DequantizeLinear alone read them; clamp in float, before",
                    )
        else:
            maker = links.producer(node.input[0])
            if maker is None or is_a(maker, "QuantizeLinear"):
                continue
            is_said = any(is_a(links.producer(each), "QuantizeLinear") for each in maker.input)
            if not is_said and links.constant(node.input[0]) is None:
                yield Violation(
                    name_of(node),
                    "pairs",
                    f"its integers come from {maker.op_type} {name_of(maker)}",
                    "dequantize what QuantizeLinear gives, or a constant",
                )


def source_of(links: Links, node: NodeProto) -> str:
    """Return the name of the float value, or constant, that a pair's integers stand for."""
    maker = node if is_a(node, "QuantizeLinear") else links.producer(node.input[0])
    return str(maker.input[0] if is_a(maker, "QuantizeLinear") else node.input[0])


def _range(values: np.ndarray[Any, Any]) -> str:
    if values.size == 0:
        return "empty"
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


INTEGERS = (_types, _zero_points, _scales, _activations, _pairs)
