"""What the exporter by tracing leaves becomes what other exporters write."""

from typing import Any

import pytest

onnx: Any = pytest.importorskip("onnx")
from onnx import parser  # noqa: E402

from fxquant.deploy.tracing.graph import (  # noqa: E402
    describe_lengths,
    fix_lengths,
    gather_constants,
)


def model(text: str, out: str = "float[7]") -> Any:
    return parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        f"main (float[3, height, width] x) => ({out} out, float[9, 9] other) {{\n{text}\n}}"
    )


def nodes(made: Any) -> list[str]:
    return [
        f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})"
        for node in made.graph.node
    ]


def test_constants_become_initializers_and_have_one_name() -> None:
    made = model("""
        one = Constant<value = float {1.0}>()
        same = Identity(one)
        again = Identity(same)
        y = Add(x, again)
        out = Identity(y)
        other = Constant<value = float[2] {1.0, 2.0}>()
    """)
    gather_constants(made)
    assert nodes(made) == ["y = Add(x, one)", "out = Identity(y)", "other = Constant()"]
    assert [tensor.name for tensor in made.graph.initializer] == ["one"]
    onnx.checker.check_model(made)


def test_lengths_are_inferred_and_named() -> None:
    made = model("out = NonZero(x)\nother = ReduceMax(x, axis)", out="int64[7, 7]")
    made.graph.initializer.append(onnx.helper.make_tensor("axis", 7, [1], [0]))
    made.graph.node[1].attribute.append(onnx.helper.make_attribute("keepdims", 0))
    describe_lengths(made)
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in made.graph.output
    ]
    assert shapes == [[3, "out_1"], ["height", "width"]]


def test_lengths_are_fixed_by_name() -> None:
    made = model("out = Relu(x)\nother = Relu(x)")
    fix_lengths(made, {"x": (3, 8, 9), "y": (1,)})
    (x,) = made.graph.input
    assert [axis.dim_value for axis in x.type.tensor_type.shape.dim] == [3, 8, 9]
