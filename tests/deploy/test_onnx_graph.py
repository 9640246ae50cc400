"""The steps from what PyTorch writes to what runtimes look for, each on a small graph."""

from inspect import cleandoc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")

import onnxruntime  # noqa: E402
from onnx import parser  # noqa: E402

from fxquant.deploy.onnx_graph import (  # noqa: E402
    drop_notes,
    keep_in_float,
    name_batch,
    name_inputs,
    pack_weights,
    split_biases,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.02),
    "z": np.uint8(100),
    "w": RNG.integers(-8, 8, (3, 4)).astype(np.int8),
    "t": np.full(3, 0.1, np.float32),
    "b": RNG.normal(size=3).astype(np.float32),
    "f": RNG.normal(size=(3, 4)).astype(np.float32),
}
INPUTS = "xd = DequantizeLinear(xq, s, z)\nwd = DequantizeLinear<axis=0>(w, t)"
QUANTIZED = "r = Relu(y)\nq = QuantizeLinear(r, s, z)\nout = DequantizeLinear(q, s, z)"


def model(text: str) -> Any:
    """Return the model that quantizes `x` and goes on as `text` says, to `out`."""
    made = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]>\n'
        f"main (float[n, 4] x) => (float[n, 3] out) {{\nxq = QuantizeLinear(x, s, z)\n{text}\n}}"
    )
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items()
    )
    return made


def text(made: Any) -> str:
    """Return the nodes behind `xq`, one a line."""
    nodes = [node for node in made.graph.node if list(node.output) != ["xq"]]
    return "\n".join(
        f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})" for node in nodes
    )


def session(made: Any, optimize: bool) -> Any:
    onnx.checker.check_model(made)
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(made: Any, optimize: bool = False) -> Any:
    return session(made, optimize).run(None, {"x": X})[0]


def test_splits_the_bias_off_a_product_that_stays_in_float() -> None:
    made = model(f"{INPUTS}\nout = Gemm<transB=1>(xd, wd, b)")
    before = run(made)
    split_biases(made)
    assert text(made) == cleandoc("""
        xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear(w, t)
        out_product = Gemm(xd, wd)
        out = Add(out_product, b)
    """)
    np.testing.assert_allclose(run(made), before, rtol=1e-6)
    again = text(made)
    split_biases(made)
    assert text(made) == again


@pytest.mark.parametrize(
    "rest",
    [
        f"{INPUTS}\ny = Gemm<transB=1>(xd, wd, b)\n{QUANTIZED}",
        f"{INPUTS}\nout = Gemm<transB=1>(xd, wd)",
        f"{INPUTS}\nout = Gemm<transB=1>(x, wd, b)",
        f"{INPUTS}\nout = Gemm<transB=1>(xd, f, b)",
    ],
    ids=["the result is quantized", "there is none", "a float operand", "a float weight"],
)
def test_leaves_the_bias_where(rest: str) -> None:
    made = model(rest)
    before = text(made)
    split_biases(made)
    assert text(made) == before


def test_keeps_a_layer_in_float_that_onnxruntime_would_quantize() -> None:
    made = model(f"xd = DequantizeLinear(xq, s, z)\ny = Gemm<transB=1>(xd, f, b)\n{QUANTIZED}")
    made.graph.node[2].name = "fc"
    expected = run(made)
    assert not np.array_equal(run(made, optimize=True), expected)
    keep_in_float(made)
    assert text(made) == cleandoc("""
        fxquant_zero = DequantizeLinear(fxquant_zero_integer, fxquant_zero_scale)
        xd = DequantizeLinear(xq, s, z)
        fc_weight = Add(f, fxquant_zero)
        y = Gemm(xd, fc_weight, b)
        r = Relu(y)
        q = QuantizeLinear(r, s, z)
        out = DequantizeLinear(q, s, z)
    """)
    assert np.array_equal(run(made, optimize=True), expected)


@pytest.mark.parametrize(
    "rest",
    [
        f"{INPUTS}\ny = Gemm<transB=1>(xd, wd, b)\n{QUANTIZED}",
        "xd = DequantizeLinear(xq, s, z)\nout = Gemm<transB=1>(xd, f, b)",
        f"y = Gemm<transB=1>(x, f, b)\n{QUANTIZED}",
    ],
    ids=["integers", "a float result", "a float input"],
)
def test_leaves_a_layer_with(rest: str) -> None:
    made = model(rest)
    before = text(made)
    keep_in_float(made)
    assert text(made) == before


def test_packs_weights_of_four_bits() -> None:
    made = model(f"{INPUTS}\nout = Gemm<transB=1>(xd, wd, b)")
    expected = run(made)
    pack_weights(made)
    assert text(made).startswith("w = Cast(w_int4)\n")
    packed = next(each for each in made.graph.initializer if each.name == "w_int4")
    assert (packed.data_type, len(packed.raw_data)) == (onnx.TensorProto.INT4, 6)
    assert np.array_equal(onnx.numpy_helper.to_array(packed).astype(np.int8), CONSTANTS["w"])
    assert "w" not in [each.name for each in made.graph.initializer]
    assert np.array_equal(run(made), expected)


def test_packs_an_odd_number_of_weights() -> None:
    made = model("out = Identity(x)")
    weight = np.array([[-8, 7, -1]], np.int8)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "odd"))
    pack_weights(made)
    packed = next(each for each in made.graph.initializer if each.name == "odd_int4")
    assert packed.raw_data == bytes([0x78, 0x0F])
    assert np.array_equal(onnx.numpy_helper.to_array(packed).astype(np.int8), weight)


def test_leaves_what_does_not_fit_into_four_bits() -> None:
    made = model("out = Identity(x)")
    others = {
        "wide": np.array([[8, 0]], np.int8),
        "low": np.array([[-9, 0]], np.int8),
        "vector": np.zeros(4, np.int8),
        "unsigned": np.zeros((2, 2), np.uint8),
        "empty": np.zeros((0, 2), np.int8),
    }
    for name, value in others.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    pack_weights(made)
    assert others.keys() <= {each.name for each in made.graph.initializer}


def test_names_the_batch() -> None:
    made = model("out = Identity(x)")
    name_batch(made)
    (x,), (out,) = made.graph.input, made.graph.output
    for value, size in ((x, 4), (out, 3)):
        first, second = value.type.tensor_type.shape.dim
        assert (first.dim_param, second.dim_value) == ("batch", size)


def test_names_an_input_that_is_returned() -> None:
    made = model("out = Identity(x)")
    made.graph.input[0].name = made.graph.node[0].input[0] = "x_orig"
    name_inputs(made, ["y"])
    assert made.graph.input[0].name == "x_orig"
    name_inputs(made, ["x"])
    assert made.graph.input[0].name == made.graph.node[0].input[0] == "x"


def test_drops_notes() -> None:
    made = model("out = Identity(x)")
    for each in (made, made.graph, made.graph.node[0], made.graph.initializer[0]):
        each.metadata_props.add(key="stack_trace", value="/home/me/secret.py")
    drop_notes(made)
    assert b"secret" not in made.SerializeToString()
