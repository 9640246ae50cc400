"""The operators that quantize, as PyTorch's exporter by TorchScript writes them: by "symbolics".

    quantized_decomposed.quantize_per_tensor(x, 0.02, 114, 0, 255, uint8)
    ─▶ QuantizeLinear(x, 0.02, uint8(114))
    quantized_decomposed.dequantize_per_channel(w, scales, zero_points, 0, -128, 127, int8)
    ─▶ DequantizeLinear<axis=0>(w, scales, int8(zero_points))

The ends of a grid that are not its type's stand in the graph as `torch.clamp`, by `ClampIntegers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_NAMESPACE = "quantized_decomposed"
_UINT8 = 0  # as TorchScript numbers types


@contextlib.contextmanager
def quantization_known(first_opset: int) -> Iterator[None]:
    """Let PyTorch's exporter know the operators that quantize, from an opset on."""
    import torch.onnx

    exporter: Any = torch.onnx
    known = {
        f"{_NAMESPACE}::quantize_per_tensor": _quantize_per_tensor,
        f"{_NAMESPACE}::dequantize_per_tensor": _dequantize_per_tensor,
        f"{_NAMESPACE}::dequantize_per_channel": _dequantize_per_channel,
    }
    for name, symbolic in known.items():
        exporter.register_custom_op_symbolic(name, symbolic, first_opset)
    try:
        yield
    finally:
        for name in known:
            exporter.unregister_custom_op_symbolic(name, first_opset)


def _quantize_per_tensor(g: Any, x: Any, *parameters: Any) -> Any:
    return g.op("QuantizeLinear", x, *_scale_and_zero_point(g, parameters))


def _dequantize_per_tensor(g: Any, q: Any, *parameters: Any) -> Any:
    return g.op("DequantizeLinear", q, *_scale_and_zero_point(g, parameters))


def _scale_and_zero_point(g: Any, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    scale, zero_point, _, _, dtype = (_constant(each) for each in parameters[:5])
    zero_point = zero_point.to(torch.uint8 if dtype.item() == _UINT8 else torch.int8)
    return tuple(g.op("Constant", value_t=each) for each in (scale.to(torch.float32), zero_point))


def _dequantize_per_channel(g: Any, q: Any, scale: Any, zero_point: Any, axis: Any, *_: Any) -> Any:
    zero_point = g.op("Cast", zero_point, to_i=torch.onnx.TensorProtoDataType.INT8)
    return g.op("DequantizeLinear", q, scale, zero_point, axis_i=_constant(axis).item())


def _constant(value: Any) -> Any:
    return value.node().t("value")
