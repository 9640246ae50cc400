"""Where quantizers stand so that TensorRT fuses them: advice, no errors.

Source: "Q/DQ Layer-Placement Recommendations" and "Q/DQ Limitations" of the page "Explicit
Quantization". TensorRT moves QuantizeLinear back to what computes its input, DequantizeLinear on to
what reads its result, and fuses both into the layer that they meet there.
"""

from __future__ import annotations

from collections.abc import Iterator

from fxquant.deploy.onnx_links import Links, is_a
from fxquant.deploy.tensorrt_rules.violation import Violation, name_of

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = (
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Mish",
    "Elu", "Tanh", "Softplus", "Erf",
)  # fmt: skip
_COMMUTES = (
    "Relu", "Clip", "MaxPool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
    "Slice", "Split",
)  # fmt: skip
"""Over which QuantizeLinear moves back."""


def _operands(links: Links) -> Iterator[Violation]:
    """Find layers with a quantized and a float operand: "Quantize all inputs of weighted-ops"."""
    for node in links.nodes:
        if not is_a(node, *_LAYERS):
            continue
        integer = [_is_dequantized(links, name) for name in node.input[:2]]
        if any(integer) and not all(integer):
            left = node.input[integer.index(False)]
            yield Violation(
                name_of(node),
                "operands",
                f"{left} is float, the other operand is quantized",
                f"quantize {left} too, or neither",
                is_advice=True,
            )


def _residuals(links: Links) -> Iterator[Violation]:
    """Find additions that are not fused into the layer in front.

    "Quantize the residual input in skip connections": the layer's own result stays in float, the
    other operand is quantized, and so is what comes behind. The picture of the suboptimal fusion
    has both quantized.
    """
    for node in links.nodes:
        is_fixed = any(links.constant(name) is not None for name in node.input)
        if not is_a(node, "Add") or is_fixed or not _is_quantized_behind(links, node.output[0]):
            continue
        first, second = node.input
        own = [_is_result_of_layer(links, name) for name in node.input]
        integer = [_is_dequantized(links, name) for name in node.input]
        if any(own) and not any(integer):
            other = first if own[1] else second
            yield Violation(
                name_of(node),
                "residuals",
                f"{first} and {second} are float",
                f"quantize {other}, so that the layer of the other operand adds by itself",
                is_advice=True,
            )
        quantized = [name for name in node.input if _is_quantized_result(links, name)]
        if all(integer) and quantized:
            yield Violation(
                name_of(node),
                "residuals",
                f"{quantized[-1]} quantizes a layer's own result",
                "leave that in float, so that the layer adds by itself",
                is_advice=True,
            )


def _results(links: Links) -> Iterator[Violation]:
    """Find quantizers between a layer and its activation function.

    "By default, do not quantize the outputs of weighted-operations".
    """
    for node in links.nodes:
        if not is_a(node, "QuantizeLinear") or not _is_result_of_layer(links, node.input[0]):
            continue
        behind = [
            reader
            for dequantize in links.readers(node.output[0])
            for reader in links.readers(dequantize.output[0])
        ]
        if behind and all(is_a(reader, *_ACTIVATIONS) for reader in behind):
            yield Violation(
                name_of(node),
                "results",
                f"quantizes a layer's result in front of {behind[0].op_type}",
                "quantize behind the activation function only",
                is_advice=True,
            )


def _integer_results(links: Links) -> Iterator[Violation]:
    """Find operations on integers with a float result.

    "Non-weighted layers with INT8 inputs also require INT8 outputs, so quantize both".
    """
    for node in links.nodes:
        if not is_a(node, "AveragePool", "Add", "Mul"):
            continue
        is_integer = all(_is_dequantized(links, name) for name in node.input)
        if is_integer and not _is_quantized_behind(links, node.output[0]):
            yield Violation(
                name_of(node),
                "integer results",
                f"{node.op_type} of quantized tensors has a float result",
                "quantize its result too, or not its inputs",
                is_advice=True,
            )


def _scales_of_readers(links: Links) -> Iterator[Violation]:
    """Find tensors that are quantized at several scales.

    "Q/DQ Limitations": two quantizers of one tensor move back only where their scales are equal.
    """
    for name in {node.input[0]: None for node in links.nodes if is_a(node, "QuantizeLinear")}:
        quantizers = [each for each in links.readers(name) if is_a(each, "QuantizeLinear")]
        arrays = [links.array(each.input[1]) for each in quantizers]
        scales = {array.item() for array in arrays if array is not None and array.size == 1}
        if len(scales) > 1:
            yield Violation(
                name_of(quantizers[0]),
                "scales of readers",
                f"{name} is quantized at {', '.join(f'{scale:.4g}' for scale in sorted(scales))}",
                "quantize it at one scale for all its readers",
                is_advice=True,
            )


def _is_dequantized(links: Links, name: str) -> bool:
    """Say whether a value comes from DequantizeLinear, transposed or not."""
    producer = links.producer(name)
    while is_a(producer, "Transpose", "Reshape"):
        producer = links.producer(producer.input[0])
    return is_a(producer, "DequantizeLinear")


def _is_quantized_behind(links: Links, name: str) -> bool:
    """Say whether a reader quantizes the value, or what commutes with it."""
    return any(
        is_a(reader, "QuantizeLinear")
        or (is_a(reader, *_COMMUTES) and any(_is_quantized_behind(links, o) for o in reader.output))
        for reader in links.readers(name)
    )


def _is_result_of_layer(links: Links, name: str) -> bool:
    """Say whether a layer on integers gives the value, its bias added behind it or not, to one."""
    producer = links.producer(name)
    if len(links.readers(name)) != 1 or producer is None:
        return False
    if is_a(producer, "Add"):
        given = [each for each in producer.input if links.constant(each) is None]
        return len(given) == 1 and _is_result_of_layer(links, given[0])
    return is_a(producer, *_LAYERS) and _is_dequantized(links, producer.input[0])


def _is_quantized_result(links: Links, name: str) -> bool:
    """Say whether a value is a layer's own result, quantized for one reader."""
    dequantize = links.producer(name)
    if not is_a(dequantize, "DequantizeLinear") or len(links.readers(name)) != 1:
        return False
    quantize, dequantizers = links.producer(dequantize.input[0]), links.readers(dequantize.input[0])
    if len(dequantizers) != 1 or not is_a(quantize, "QuantizeLinear"):
        return False
    return _is_result_of_layer(links, quantize.input[0])


SPEED = (_operands, _residuals, _results, _integer_results, _scales_of_readers)
