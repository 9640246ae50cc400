"""What the parser does not take, on files that break one rule each."""

import numpy as np
import pytest

from fxquant.deploy.tensorrt_rules import check
from tests.onnx_models import QUANTIZED, onnx, onnx_model


def said(made: object) -> list[str]:
    return [str(each) for each in check(made)]  # type: ignore[arg-type]


def test_an_opset_may_be_too_new() -> None:
    made = onnx_model(f"{QUANTIZED}\nout = Relu(xd)", opset=26)
    assert said(made) == [
        "error: opset 26; write opset 9 to 24; 20 is what every TensorRT 10 takes (opset)"
    ]


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("out = QLinearConv(x, s, z, w, s, z, s, z)", "QLinearConv"),
        ("q, s2, z2 = DynamicQuantizeLinear(x)\nout = Relu(x)", "DynamicQuantizeLinear"),
        ("out = com.microsoft.QGemm(x)", "com.microsoft.QGemm"),
    ],
)
def test_operators_that_need_a_plugin(text: str, operator: str) -> None:
    (found,) = said(onnx_model(text))
    assert f"{operator} is no operator of TensorRT's" in found


def test_functions_of_the_model_itself_are_taken() -> None:
    made = onnx_model("out = own.Twice(x)")
    body = onnx.parser.parse_function(
        '<domain: "own", opset_import: ["" : 20]> Twice (a) => (b) { b = Add(a, a) }'
    )
    made.functions.append(body)
    assert said(made) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('out = Resize<mode="cubic">(x, e, k)', "Resize with mode=cubic; TensorRT takes mode=near"),
        ("out = Resize<antialias=1>(x, e, k)", "Resize with antialias=1; TensorRT takes antialias"),
        ("out = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", "MaxPool with dilations=[2, 2]"),
        ("out, i = MaxPool<kernel_shape=[2,2]>(x)", "MaxPool with 2 results; TensorRT gives the"),
        ("out, i = TopK<sorted=0>(x, k)", "TopK with sorted=0; TensorRT takes sorted=1"),
    ],
)
def test_attributes_and_results_that_are_not_taken(text: str, wanted: str) -> None:
    (found,) = said(onnx_model(text, k=np.ones(4, np.float32), e=np.zeros(0, np.float32)))
    assert wanted in found


def test_the_same_operators_as_they_are_taken() -> None:
    made = onnx_model(
        'r = Resize<mode="linear">(x, e, k)\n'
        "p = MaxPool<kernel_shape=[2,2], dilations=[1,1]>(r)\nout, i = TopK(p, k)",
        k=np.ones(4, np.float32), e=np.zeros(0, np.float32),
    )  # fmt: skip
    assert said(made) == []


def test_casts_to_and_from_quantized_types() -> None:
    int4 = onnx.TensorProto(
        name="w4", dims=[4, 4], data_type=onnx.TensorProto.INT4, raw_data=bytes(8)
    )
    text = "{}\nd = DequantizeLinear<axis=0>(c, t, v)\nout = Add(x, d)"
    packed = onnx_model(text.format("c = Cast<to=3>(w4)"), w4=int4, t=np.float32(1), v=np.int8(0))
    assert said(packed) == [
        "error: c: Cast to INT8; store INT8, and quantize by QuantizeLinear (casts)"
    ]
    back = onnx_model(f"{QUANTIZED}\nc = Cast<to=1>(z)\nout = Add(xd, c)")
    assert said(back) == [
        "error: c: Cast from INT8; store INT8, and quantize by QuantizeLinear (casts)"
    ]
