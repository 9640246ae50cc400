"""Files that keep to all rules, and what is told of those that do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxquant.deploy.tensorrt_rules import Violation, check
from fxquant.errors import LoweringError
from tests.onnx_models import LAYER, QUANTIZED, onnx, onnx_model

RESIDUAL = f"{LAYER}\na = Add(xd, y)\nr = Relu(a)\nq = QuantizeLinear(r, s, z)\n" + (
    "out = DequantizeLinear(q, s, z)"
)


def test_a_residual_block_breaks_no_rule() -> None:
    made = onnx_model(RESIDUAL)
    onnx.checker.check_model(made)
    assert check(made) == []


def test_a_float_model_breaks_no_rule() -> None:
    assert check(onnx_model("y = Conv(x, f, b)\nout = Add(y, x)", f=np.ones((4, 4, 1, 1)))) == []


def test_reads_a_file(tmp_path: Path) -> None:
    made = onnx_model(RESIDUAL, z=np.uint8(128))
    onnx.save(made, tmp_path / "model.onnx")
    assert (
        check(str(tmp_path / "model.onnx")) == check(tmp_path / "model.onnx") == check(made) != []
    )


def test_errors_come_before_advice() -> None:
    text = f"{LAYER}\ny2 = Conv(xd, wd, b)\na = Add(y, y2)\nout = QuantizeLinear(a, s, z)"
    found = check(onnx_model(text, z=np.uint8(3)))
    assert [each.is_advice for each in found] == [False] * (len(found) - 1) + [True]


def test_an_error_says_where_what_and_what_to_do() -> None:
    violation = Violation("conv", "zero-points", "the zero-point is 3", "make it 0")
    assert str(violation) == "error: conv: the zero-point is 3; make it 0 (zero-points)"
    hint = Violation("", "opset", "opset 26", "write opset 20", is_advice=True)
    assert str(hint) == "advice: opset 26; write opset 20 (opset)"


def test_looks_into_the_bodies_of_conditions() -> None:
    body = onnx.parser.parse_graph("g () => (float out) { out = Unique(x) }")
    made = onnx_model(f"{QUANTIZED}\nc = Constant<value = bool {{1}}>()\nout = If(c)")
    node = made.graph.node[-1]
    for name in ("then_branch", "else_branch"):
        node.attribute.append(onnx.helper.make_attribute(name, body))
    assert [each.rule for each in check(made)] == ["operators"] * 2


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(_: str) -> Any:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(LoweringError, match="onnx not installed: pip install"):
        check("model.onnx")
