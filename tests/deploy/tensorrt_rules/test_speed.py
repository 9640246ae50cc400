"""Where quantizers keep TensorRT from fusing, on files that are taken all the same."""

from typing import Any

import numpy as np
import pytest

from fxquant.deploy.tensorrt_rules import check
from tests.onnx_models import LAYER, QUANTIZED, WEIGHT, onnx_model

BEHIND = "r = Relu(a)\nq = QuantizeLinear(r, s, z)\nout = DequantizeLinear(q, s, z)"
OWN = "yq = QuantizeLinear(y, s, z)\nyd = DequantizeLinear(yq, s, z)"


def said(made: Any) -> list[str]:
    found = check(made)
    assert all(each.is_advice for each in found)
    return [str(each) for each in found]


def test_a_layer_with_one_quantized_operand() -> None:
    assert said(onnx_model(f"{WEIGHT}\nout = Conv(x, wd, b)")) == [
        "advice: out: x is float, the other operand is quantized; quantize x too, or neither "
        "(operands)"
    ]
    made = onnx_model(f"{QUANTIZED}\nout = Conv(xd, f, b)", f=np.ones((4, 4, 1, 1), np.float32))
    assert said(made) == [
        "advice: out: f is float, the other operand is quantized; quantize f too, or neither "
        "(operands)"
    ]


def test_a_skip_that_is_float() -> None:
    assert said(onnx_model(f"{LAYER}\nt1 = Tanh(x)\na = Add(y, t1)\n{BEHIND}")) == [
        "advice: a: y and t1 are float; quantize t1, so that the layer of the other operand adds "
        "by itself (residuals)"
    ]


@pytest.mark.parametrize("order", ["yd, xd", "xd, yd"])
def test_a_layers_own_result_that_is_quantized_in_front_of_an_addition(order: str) -> None:
    assert said(onnx_model(f"{LAYER}\n{OWN}\na = Add({order})\n{BEHIND}")) == [
        "advice: a: yd quantizes a layer's own result; leave that in float, so that the layer adds "
        "by itself (residuals)"
    ]


def test_one_of_two_layers_is_quantized() -> None:
    both = f"{LAYER}\nu = Conv(xd, wd, b)"
    assert said(onnx_model(f"{both}\n{OWN}\na = Add(yd, u)\n{BEHIND}")) == []
    (found,) = said(onnx_model(f"{both}\na = Add(y, u)\n{BEHIND}"))
    assert found.startswith("advice: a: y and u are float; quantize ")


def test_a_float_result_of_an_addition_needs_no_quantized_skip() -> None:
    assert said(onnx_model(f"{LAYER}\nt1 = Tanh(x)\nout = Add(y, t1)")) == []


def test_a_bias_that_is_added_is_no_skip() -> None:
    product = f"{QUANTIZED}\nmd = DequantizeLinear<axis=1>(m, t, v)\np = MatMul(xd, md)"
    made = onnx_model(f"{product}\na = Add(p, b)\n{BEHIND}", b=np.ones(8, np.float32))
    assert said(made) == []


def test_a_quantizer_in_front_of_an_activation_function() -> None:
    assert said(onnx_model(f"{LAYER}\n{OWN}\nout = Sigmoid(yd)")) == [
        "advice: yq: quantizes a layer's result in front of Sigmoid; quantize behind the "
        "activation function only (results)"
    ]


def test_an_average_of_integers_with_a_float_result() -> None:
    pooled = f"{QUANTIZED}\na = AveragePool<kernel_shape=[2,2]>(xd)"
    assert said(onnx_model(f"{pooled}\nout = Tanh(a)")) == [
        "advice: a: AveragePool of quantized tensors has a float result; quantize its result too, "
        "or not its inputs (integer results)"
    ]
    assert said(onnx_model(f"{pooled}\n{BEHIND}")) == []


def test_a_tensor_that_is_quantized_at_two_scales() -> None:
    made = onnx_model(
        f"{LAYER}\ng = Tanh(y)\nq = QuantizeLinear(g, s, z)\nd = DequantizeLinear(q, s, z)\n"
        "p = QuantizeLinear(g, k, z)\ne = DequantizeLinear(p, k, z)\nh = Conv(d, wd, b)\n"
        "i = Conv(e, wd, b)\nout = Concat<axis=1>(h, i)",
        k=np.float32(0.01),
    )
    assert said(made) == [
        "advice: q: g is quantized at 0.01, 0.02; quantize it at one scale for all its readers "
        "(scales of readers)"
    ]
