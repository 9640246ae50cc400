"""How the weights and biases of layers are quantized.

Sources: "Explicit Quantization" of TensorRT's documentation (guide): "Use per-tensor quantization
for activations; and per-channel quantization for weights", the axis of GEMM's channels under "ONNX
Support", INT4 under "Weight-Only Quantization".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fxquant.deploy.onnx_links import Links, attribute, count, input_of, is_a
from fxquant.deploy.tensorrt_rules.integers import pair_nodes, source_of
from fxquant.deploy.tensorrt_rules.violation import Violation, name_of

if TYPE_CHECKING:
    from onnx import NodeProto

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def _channels(links: Links) -> Iterator[Violation]:
    """Find scales per channel that do not lie along the output channels of a layer's weight.

    The first axis of a convolution's weight, grouped or not, and of a Gemm's with transB; the last
    one of a product's (parser, guide). Kernels of transposed convolutions read them along the
    inputs: "We don't support per-output-channel quant for ConvTranspose" (NVIDIA/TensorRT#2380).
    """
    for node in links.nodes:
        if not is_a(node, "DequantizeLinear"):
            continue
        weight, scale = links.constant(source_of(links, node)), links.constant(node.input[1])
        if weight is None or scale is None or count(scale) == 1:
            continue
        rank = len(weight.dims)
        axis = attribute(node, "axis", 1) % max(rank, 1)
        if len(scale.dims) != 1 or not rank or scale.dims[0] != weight.dims[axis]:
            if len(scale.dims) == 1 or len(scale.dims) != rank:  # else blocks, see _four_bits
                yield Violation(
                    name_of(node),
                    "channels",
                    f"{list(scale.dims)} scales along axis {axis} of {list(weight.dims)}",
                    "give one scale for each channel",
                )
            continue
        for reader, behind in _readers_of_weight(links, node, axis):
            if (problem := _problem(reader, node, behind, rank)) is not None:
                yield Violation(name_of(node), "channels", *problem)


def _readers_of_weight(
    links: Links, node: NodeProto, axis: int
) -> Iterator[tuple[tuple[NodeProto, int], int]]:
    """Return who reads a weight as which input, transposed or not, and where its channels lie."""
    for reader in links.readers(node.output[0]):
        if is_a(reader, "Transpose"):
            turned = attribute(reader, "perm")
            behind = turned.index(axis) if turned else -1 - axis
            yield from _readers_of_weight(links, reader, behind)
        else:
            yield (reader, list(reader.input).index(node.output[0])), axis


def _problem(
    reader: tuple[NodeProto, int], weight: NodeProto, axis: int, rank: int
) -> tuple[str, str] | None:
    """Return what is wrong with channels along `axis` for that reader, and what to do."""
    layer, position = reader
    axis %= rank
    what = f"one scale for each index of axis {axis} of {weight.input[0]}, read by {layer.op_type}"
    if is_a(layer, "ConvTranspose") and position == 1:
        if axis == 0:
            return None
        return (
            f"{what} {name_of(layer)}",
            "use one scale for the weight of a transposed convolution",
        )
    wanted = {
        "Conv": 0,
        "Gemm": 0 if attribute(layer, "transB", 0) else 1,
        "MatMul": rank - 1,
    }.get(layer.op_type)
    if wanted is None or position != 1:
        remedy = "scales per channel are for weights that a layer reads as they are; use one scale"
        return f"{what} {name_of(layer)}", remedy
    if axis == wanted:
        return None
    return f"{what} {name_of(layer)}", f"its output channels lie along axis {wanted}"


def _biases(links: Links) -> Iterator[Violation]:
    """Find quantized biases: they are float (operators.md: DequantizeLinear takes no INT32)."""
    from onnx import TensorProto

    for node in links.nodes:
        if not is_a(node, "DequantizeLinear"):
            continue
        is_int32 = links.element_type(node.input[0]) == TensorProto.INT32
        layers = [
            each
            for each in links.readers(node.output[0])
            if is_a(each, *_WITH_BIAS) and input_of(each, 2) == node.output[0]
        ]
        if is_int32 or layers:
            kind = "INT32" if is_int32 else "a quantized tensor"
            of = f" as the bias of {name_of(layers[0])}" if layers else ""
            yield Violation(
                name_of(node), "biases", f"dequantizes {kind}{of}", "write the bias in float"
            )


def _four_bits(links: Links) -> Iterator[Violation]:
    """Find INT4 other than for the weight of a product of float inputs (weight-only)."""
    from onnx import TensorProto

    for node in pair_nodes(links):
        if is_a(node, "QuantizeLinear"):
            found = links.quantized_type(node)
            is_wrong = links.constant(node.input[0]) is None
        else:
            found = links.element_type(node.input[0])
            is_wrong = not all(
                is_a(layer, "MatMul", "Gemm")
                and position == 1
                and not is_a(links.producer(layer.input[0]), "DequantizeLinear")
                for (layer, position), _ in _readers_of_weight(links, node, 0)
            )
        if found == TensorProto.INT4 and is_wrong:
            yield Violation(
                name_of(node),
                "4 bits",
                f"{node.op_type} of INT4",
                "store it as INT8: INT4 is for weights of matrix products with float inputs",
            )


WEIGHTS = (_channels, _biases, _four_bits)
