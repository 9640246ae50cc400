"""Operators that onnxruntime has integers for take the place of those that it has none for."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")

import onnxruntime  # noqa: E402

from fxquant.deploy.onnx_operators import average_globally, widen_biases  # noqa: E402
from tests.onnx_models import LAYER, QUANTIZED, onnx_model  # noqa: E402

MAP = f"{LAYER}\nyq = QuantizeLinear(y, s, z)\nyd = DequantizeLinear(yq, s, z)"
X = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)


def model(text: str, batch: int | None = None, **constants: Any) -> Any:
    made = onnx_model(text, **constants)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    if batch is not None:
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return onnx.shape_inference.infer_shapes(made)


def kinds(made: Any) -> list[str]:
    return [node.op_type for node in made.graph.node]


def run(made: Any, tmp_path: Any = None) -> Any:
    """Return the output; with a folder, the output and the kernels of the optimized graph."""
    onnx.checker.check_model(made)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if tmp_path is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": X})
    return (
        found
        if tmp_path is None
        else (found, Counter(kinds(onnx.load(tmp_path / "optimized.onnx"))))
    )


@pytest.mark.parametrize(
    ("mean", "written"),
    [
        ("g = ReduceMean<keepdims=1>(yd, axes)", ["GlobalAveragePool"]),
        ("g = ReduceMean<keepdims=0>(yd, axes)", ["GlobalAveragePool", "Squeeze"]),
    ],
)
def test_a_mean_over_all_places_works_on_integers(
    tmp_path: Any, mean: str, written: list[str]
) -> None:
    text = f"{MAP}\n{mean}\nq = QuantizeLinear(g, s, z)\nout = DequantizeLinear(q, s, z)"
    made = model(text, axes=np.array([-1, 2]))
    before = run(made)
    average_globally(made)
    assert kinds(made)[6:-2] == written
    np.testing.assert_allclose(run(made), before, atol=1e-6)
    found, kernels = run(made, tmp_path)
    assert kernels["QLinearGlobalAveragePool"] == 1
    assert np.abs(found - before).max() <= 0.0201  # a step
    again = kinds(made)
    average_globally(made)
    assert kinds(made) == again


@pytest.mark.parametrize("others", ["", "again = ReduceMax<keepdims=1>(yd, axes)"])
def test_axes_that_nothing_reads_any_more_are_gone(others: str) -> None:
    made = model(f"{MAP}\n{others}\nout = ReduceMean<keepdims=0>(yd, axes)", axes=np.array([2, 3]))
    average_globally(made)
    assert ("axes" in {each.name for each in made.graph.initializer}) == bool(others)
    run(made)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        (f"{MAP}\nout = ReduceMean<keepdims=1>(yd, axes)", [1, 2, 3]),
        (f"{MAP}\nout = ReduceMean<keepdims=1>(yd, axes)", [3]),
        (f"{LAYER}\nout = ReduceMean<keepdims=1>(y, axes)", [2, 3]),
        (f"{MAP}\nout = ReduceMax<keepdims=1>(yd, axes)", [2, 3]),
    ],
    ids=["over channels too", "over one axis", "of a float map", "no mean"],
)
def test_another_reduction_stays(text: str, axes: list[int]) -> None:
    made = model(text, axes=np.array(axes))
    before = kinds(made)
    average_globally(made)
    assert kinds(made) == before


PRODUCT = f"{QUANTIZED}\nmd = DequantizeLinear<axis=1>(m, t, v)"
WIDE = np.random.default_rng(0).integers(-8, 8, (8, 4)).astype(np.int8)


@pytest.mark.parametrize("order", ["y, b", "b, y"])
def test_a_product_of_known_lengths_and_its_bias_work_on_integers(
    tmp_path: Any, order: str
) -> None:
    made = model(f"{PRODUCT}\ny = MatMul(xd, md)\nout = Add({order})", batch=2, m=WIDE)
    before = run(made)
    assert "MatMulIntegerToFloat" not in run(made, tmp_path)[1]
    widen_biases(made)
    assert list(made.graph.node[-1].input) == ["y", "b_row"]
    assert {tuple(each.dims) for each in made.graph.initializer if each.name.startswith("b")} == {
        (1, 4)
    }
    found, kernels = run(made, tmp_path)
    assert kernels["MatMulIntegerToFloat"] == 1
    np.testing.assert_allclose(found, before, atol=1e-5)
    again = str(made)
    widen_biases(made)
    assert str(made) == again


@pytest.mark.parametrize(
    ("text", "batch"),
    [
        (f"{PRODUCT}\ny = MatMul(xd, md)\nout = Add(y, b)", None),
        (f"{PRODUCT}\ny = MatMul(x, md)\nout = Add(y, b)", 2),
        (f"{PRODUCT}\ny = Sub(xd, s)\nout = Add(y, s)", 2),
        (
            f"{PRODUCT}\ny = MatMul(xd, md)\na = Add(y, b)\nq = QuantizeLinear(a, s, z)\n"
            "out = DequantizeLinear(q, s, z)",
            2,
        ),
    ],
    ids=["a free batch", "a float operand", "no product", "the sum is quantized"],
)
def test_a_bias_stays_as_it_is_with(text: str, batch: int | None) -> None:
    made = model(text, batch, m=WIDE)
    before = str(made)
    widen_biases(made)
    assert str(made) == before


def test_a_bias_that_another_node_reads_is_there_for_it() -> None:
    text = f"{PRODUCT}\ny = MatMul(xd, md)\na = Add(y, b)\nout = Mul(a, b)"
    made = model(text, batch=2, m=WIDE)
    before = run(made)
    widen_biases(made)
    np.testing.assert_allclose(run(made), before, rtol=1e-6)
