"""Who computes, who reads, and what is known beforehand."""

import numpy as np

from fxquant.deploy.onnx_links import Links, attribute, input_of, is_a
from tests.onnx_models import QUANTIZED, onnx, onnx_model


def test_joins_nodes_and_constants() -> None:
    links = Links(
        onnx_model(f"{QUANTIZED}\nc = Constant<value_floats=[1.0, 2.0]>()\nout = Relu(xd)")
    )
    quantize = links.producer("xq")
    assert is_a(quantize, "QuantizeLinear")
    assert [reader.op_type for reader in links.readers("xq")] == ["DequantizeLinear"]
    assert links.producer("x") is None
    assert links.readers("out") == []
    assert links.outputs == {"out"}
    array = links.array("c")
    assert array is not None
    assert array.tolist() == [1.0, 2.0]
    assert links.array("xd") is None
    assert (input_of(quantize, 2), input_of(quantize, 3)) == ("z", "")
    assert attribute(quantize, "axis", 1) == 1


def test_knows_the_types_of_integers() -> None:
    text = (
        "a = QuantizeLinear(x, s, z)\nb1 = QuantizeLinear(x, s)\nc = Cast<to=6>(s)\nout = Relu(x)"
    )
    links = Links(onnx_model(text))
    types = [links.element_type(name) for name in ("a", "b1", "c", "s", "x")]
    names = [None if each is None else onnx.TensorProto.DataType.Name(each) for each in types]
    assert names == ["INT8", None, "INT32", "FLOAT", None]


def test_a_constant_is_one_behind_a_cast() -> None:
    links = Links(onnx_model("c = Cast<to=1>(k)\nout = Add(x, c)", k=np.int64(3)))
    tensor = links.constant("c")
    assert tensor is not None
    assert tensor.name == "k"
