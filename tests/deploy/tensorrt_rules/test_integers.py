"""How the nodes that quantize may look, on files that break one rule each."""

from typing import Any

import numpy as np
import pytest

from fxquant.deploy.tensorrt_rules import check
from tests.onnx_models import QUANTIZED, onnx_model

OUT = f"{QUANTIZED}\nout = Relu(xd)"


def said(made: Any) -> list[str]:
    return [str(each) for each in check(made)]


def test_unsigned_integers() -> None:
    assert said(onnx_model(OUT, z=np.uint8(0))) == [
        "error: xq: QuantizeLinear of UINT8; quantize to INT8: Recipe(target='tensorrt') (types)"
    ]


def test_unsigned_weights() -> None:
    made = onnx_model("d = DequantizeLinear(w, s)\nout = Add(x, d)", w=np.ones((4, 1, 1), np.uint8))
    assert said(made) == [
        "error: d: DequantizeLinear of UINT8; quantize to INT8: Recipe(target='tensorrt') (types)"
    ]


def test_a_zero_point_left_out_means_something_else_to_onnx() -> None:
    made = onnx_model("xq = QuantizeLinear(x, s)\nxd = DequantizeLinear(xq, s)\nout = Relu(xd)")
    assert said(made) == [
        "error: xq: no zero-point, which is uint8 to ONNX and int8 to TensorRT; "
        "give a zero-point 0 of type int8 (types)"
    ]


def test_a_type_may_be_given_without_a_zero_point() -> None:
    text = "xq = QuantizeLinear<output_dtype=3>(x, s)\nxd = DequantizeLinear(xq, s)"
    assert said(onnx_model(f"{text}\nout = Relu(xd)", opset=21)) == []


def test_zero_points_other_than_0() -> None:
    made = onnx_model("d = DequantizeLinear<axis=0>(w, t, v)\nout = Conv(x, d, b)",
                      v=np.array([0, 0, -3, 5], np.int8))  # fmt: skip
    assert said(made)[0] == (
        "error: d: the zero-point is -3 to 5; make it 0: Recipe(target='tensorrt') (zero-points)"
    )
    found = said(onnx_model(OUT, z=np.int8(7)))
    assert [each.split(";")[0] for each in found] == [
        "error: xq: the zero-point is 7", "error: xd: the zero-point is 7"
    ]  # fmt: skip


def test_scales_that_are_computed() -> None:
    made = onnx_model("c = ReduceMax<keepdims=0>(x)\nxq = QuantizeLinear(x, c, z)\n"
                      "xd = DequantizeLinear(xq, s, z)\nout = Relu(xd)")  # fmt: skip
    assert said(made) == [
        "error: xq: the scale c is computed; write it as an initializer: dynamic quantization is "
        "not taken (scales)"
    ]


@pytest.mark.parametrize(
    ("scale", "shown"),
    [
        (np.float32(0), "0"),
        (np.float32(-0.5), "-0.5"),
        (np.float32("inf"), "inf"),
        (np.array([0.1, 0, 0.1, 0.1], np.float32), "0 to 0.1"),
    ],
)
def test_scales_that_are_not_positive(scale: Any, shown: str) -> None:
    made = onnx_model("d = DequantizeLinear<axis=0>(m, u)\ne = MatMul(k, d)\nout = Add(x, e)",
                      u=scale, m=np.ones((4, 4), np.int8), k=np.ones((8, 4)))  # fmt: skip
    assert said(made)[
        0
    ] == f"error: d: the scale is {shown}; make it positive, for each channel " + ("(scales)")


def test_constants_may_be_nodes_and_cast() -> None:
    made = onnx_model(
        "c = Constant<value_float=0.5>()\ni = Constant<value_int=0>()\nj = Cast<to=3>(i)\n"
        "xq = QuantizeLinear(x, c, j)\nxd = DequantizeLinear(xq, c, j)\nout = Relu(xd)"
    )
    assert said(made) == []


def test_activations_with_a_scale_for_each_channel() -> None:
    text = "xq = QuantizeLinear<axis=1>(x, t, v)\nxd = DequantizeLinear<axis=1>(xq, t, v)"
    assert said(onnx_model(f"{text}\nout = Relu(xd)")) == [
        "error: xq: 4 scales for x, which is no constant; use one scale for each activation: "
        "per_channel=False (activations)"
    ]


def test_integers_are_read_and_made_by_the_pair_alone() -> None:
    made = onnx_model("xq = QuantizeLinear(x, s, z)\nc = Clip(xq, l, h)\n"
                      "xd = DequantizeLinear(c, s, z)\nout = Relu(xd)",
                      l=np.int8(-8), h=np.int8(7))  # fmt: skip
    assert said(made) == [
        "error: xq: Clip c reads its integers; let DequantizeLinear alone read them; clamp in "
        "float, before (pairs)"
    ]
    made = onnx_model("a = Concat<axis=0>(w, x8)\nd = DequantizeLinear(a, s, z)\nout = Relu(d)")
    made.graph.input.append(_int8_input("x8"))
    assert said(made) == [
        "error: d: its integers come from Concat a; dequantize what QuantizeLinear gives, or a "
        "constant (pairs)"
    ]


def test_a_model_may_take_and_give_integers() -> None:
    made = onnx_model("d = DequantizeLinear(x8, s, z)\nr = Relu(d)\nout = QuantizeLinear(r, s, z)")
    made.graph.input.append(_int8_input("x8"))
    assert said(made) == []


def _int8_input(name: str) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, [4, 4, 1, 1])
