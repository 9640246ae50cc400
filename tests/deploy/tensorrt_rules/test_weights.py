"""How weights and biases are quantized, on files that break one rule each."""

from typing import Any

import numpy as np
import pytest

from fxquant.deploy.tensorrt_rules import check
from tests.onnx_models import LAYER, QUANTIZED, onnx, onnx_model

ROWS = f"{QUANTIZED}\nf = Flatten<axis=3>(xd)"


def said(made: Any) -> list[str]:
    return [str(each) for each in check(made) if not each.is_advice]


@pytest.mark.parametrize(
    "layer",
    [
        "wd = DequantizeLinear<axis=0>(w, t, v)\nout = Conv<group=1>(xd, wd, b)",
        "wd = DequantizeLinear<axis=-4>(w, t, v)\nout = Conv(xd, wd, b)",
        "g = DequantizeLinear<axis=0>(d, t, v)\nout = Conv<group=4>(xd, g, b)",
        "md = DequantizeLinear<axis=0>(m, t, v)\nout = Gemm<transB=1>(xd, md)",
        "md = DequantizeLinear<axis=1>(m, t, v)\nout = Gemm(xd, md)",
        "md = DequantizeLinear<axis=1>(m, t, v)\nout = MatMul(xd, md)",
        "md = DequantizeLinear<axis=0>(m, t, v)\nn = Transpose<perm=[1,0]>(md)\n"
        "out = MatMul(xd, n)",
        "md = DequantizeLinear<axis=0>(m, t, v)\nn = Transpose(md)\nout = MatMul(xd, n)",
        "wd = DequantizeLinear(w, s, z)\nout = ConvTranspose(xd, wd, b)",
        "wd = DequantizeLinear<axis=0>(w, t, v)\nout = ConvTranspose(xd, wd, b)",
        "wq = QuantizeLinear<axis=0>(f, t, v)\nwd = DequantizeLinear<axis=0>(wq, t, v)\n"
        "out = Conv(xd, wd, b)",
    ],
)  # fmt: skip
def test_scales_along_the_output_channels_are_taken(layer: str) -> None:
    made = onnx_model(f"{QUANTIZED}\n{layer}", d=np.ones((4, 1, 1, 1), np.int8),
                      f=np.ones((4, 4, 1, 1), np.float32))  # fmt: skip
    assert said(made) == []


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        ("wd = DequantizeLinear<axis=1>(w, t, v)\nout = Conv(xd, wd, b)",
         "axis 1 of w, read by Conv out; its output channels lie along axis 0"),
        ("md = DequantizeLinear<axis=0>(m, t, v)\nout = Gemm(xd, md)",
         "axis 0 of m, read by Gemm out; its output channels lie along axis 1"),
        ("md = DequantizeLinear<axis=1>(m, t, v)\nn = Transpose<perm=[1,0]>(md)\n"
         "out = MatMul(xd, n)",
         "axis 0 of m, read by MatMul out; its output channels lie along axis 1"),
        ("wd = DequantizeLinear<axis=1>(w, t, v)\nout = ConvTranspose(xd, wd, b)",
         "axis 1 of w, read by ConvTranspose out; use one scale for the weight of a transposed"),
        ("wd = DequantizeLinear<axis=0>(w, t, v)\nr = Reshape(wd, k)\n"
         "out = ConvTranspose<group=2>(xd, r, b)",
         "axis 0 of w, read by Reshape r; scales per channel are for weights that a layer reads"),
        ("wd = DequantizeLinear<axis=0>(u, t, v)\nout = Conv(xd, wd, b)",
         "[4] scales along axis 0 of [6, 4, 1, 1]; give one scale for each channel"),
    ],
)  # fmt: skip
def test_scales_along_other_axes(layer: str, wanted: str) -> None:
    more: dict[str, Any] = {"k": np.array([4, 4, 1, 1]), "u": np.ones((6, 4, 1, 1), np.int8)}
    (found,) = said(onnx_model(f"{QUANTIZED}\n{layer}", **more))
    assert wanted in found
    assert found.endswith("(channels)")


def test_quantized_biases() -> None:
    text = LAYER.replace("Conv(xd, wd, b)", "Conv(xd, wd, bd)").replace("\ny =", "\n{}\nout =")
    made = onnx_model(text.format("bd = DequantizeLinear(c, s)"), c=np.ones(4, np.int32))
    assert said(made) == [
        "error: bd: dequantizes INT32 as the bias of out; write the bias in float (biases)"
    ]
    made = onnx_model(text.format("bd = DequantizeLinear(v, s, z)"))
    assert said(made) == [
        "error: bd: dequantizes a quantized tensor as the bias of out; write the bias in float "
        "(biases)"
    ]


def test_a_bias_that_is_added_behind_is_one_too() -> None:
    made = onnx_model("d = DequantizeLinear(c, s)\nout = Add(x, d)", c=np.ones((4, 1, 1), np.int32))
    assert said(made) == ["error: d: dequantizes INT32; write the bias in float (biases)"]


def int4() -> Any:
    return onnx.TensorProto(dims=[4, 4], data_type=onnx.TensorProto.INT4, raw_data=bytes(8))


def test_four_bits_are_for_products_of_floats() -> None:
    weight = "md = DequantizeLinear<axis=1>(w4, t)"
    assert said(onnx_model(f"{weight}\nout = MatMul(x, md)", opset=21, w4=int4())) == []
    found = said(onnx_model(f"{QUANTIZED}\n{weight}\nout = MatMul(xd, md)", opset=21, w4=int4()))
    assert found == [
        "error: md: DequantizeLinear of INT4; store it as INT8: INT4 is for weights of matrix "
        "products with float inputs (4 bits)"
    ]
