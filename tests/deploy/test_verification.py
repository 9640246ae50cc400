"""A file that computes something else than the model is refused, by what the two return."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import LoweringError
from fxquant.deploy import export
from fxquant.deploy.verification import _reordered
from tests.helpers import Net

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

X = torch.randn(8, 3)


@pytest.fixture
def linear() -> nn.Module:
    return fxquant.quantize(nn.Sequential(nn.Linear(3, 4)), [X])


def spoil(model: Any) -> None:
    """Double the scales of the weights."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == "float32" and values.shape == (4,) and (values > 0).all():
            tensor.CopyFrom(onnx.numpy_helper.from_array(2 * values, tensor.name))


def test_refuses_a_file_that_computes_something_else(
    linear: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "drop_notes", spoil)
    with pytest.raises(LoweringError) as caught:
        fxquant.export_onnx(linear, tmp_path / "m.onnx", X)
    found = str(caught.value)
    assert found.startswith("export_onnx: the file does not compute what the model does: output ")
    assert "'output' differs: it agrees to " in found
    assert list(tmp_path.iterdir()) == []
    fxquant.export_onnx(linear, tmp_path / "m.onnx", X, verify=False)
    assert (tmp_path / "m.onnx").exists()


def drop_rows(model: Any) -> None:
    """Leave the first row of the result out."""
    result = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["all" if name == result else name for name in node.output]
    for name, value in (("one", 1), ("end", 2**31), ("zero", 0)):
        model.graph.initializer.append(onnx.helper.make_tensor(name, 7, [1], [value]))
    inputs = ["all", "one", "end", "zero"]
    model.graph.node.append(onnx.helper.make_node("Slice", inputs, [result]))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "others"


def test_says_which_shape_is_another(
    linear: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "drop_notes", drop_rows)
    with pytest.raises(LoweringError, match=r"'output' has the shape \(7, 4\) in the place of"):
        fxquant.export_onnx(linear, tmp_path / "m.onnx", X)


def test_tells_nothing_of_a_model_that_picks_among_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def best(m: Any, x: Tensor) -> Tensor:
        return m.other(x)[m.scores(x)[:, 0].topk(2)[1]]  # type: ignore[no-any-return]

    scores = nn.Linear(3, 1)
    nn.init.zeros_(scores.weight)
    net = Net(best, scores=scores, other=nn.Linear(3, 4))
    prepared = fxquant.prepare(net, fxquant.Recipe.minmax(), regions=["scores", "other"])
    model = fxquant.convert(fxquant.calibrate(prepared, [X], progress=False) or prepared)
    monkeypatch.setattr(export, "drop_notes", spoil)
    fxquant.export_onnx(model, tmp_path / "m.onnx", X, dynamic_batch=False)
    assert "whether the file computes the same cannot be told" in caplog.text


def test_detections_of_one_score_may_come_in_any_order() -> None:
    boxes, scores = torch.rand(4, 4), torch.tensor([0.5, 0.5, 0.4, 0.3])
    expected = {"output_0_boxes": boxes, "output_0_scores": scores, "output_0_few": boxes[:2]}
    order = torch.tensor([1, 0, 2, 3])
    actual = {name: each[order[: len(each)]] for name, each in expected.items()}
    found = _reordered(expected, actual)
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    apart = actual | {"output_0_scores": scores.flip(0)}  # boxes with scores of others
    assert not torch.equal(_reordered(expected, apart)["output_0_scores"], scores)


def test_compares_nothing_where_onnxruntime_is_absent(
    linear: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    monkeypatch.setattr(export, "drop_notes", spoil)
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.export_onnx(linear, tmp_path / "m.onnx", X)
    assert "export_onnx: not verified: onnxruntime is not installed" in caplog.text


def test_a_file_that_onnxruntime_cannot_load_is_written(
    linear: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def renew(model: Any) -> None:
        model.opset_import[0].version = 999

    monkeypatch.setattr(export, "drop_notes", renew)
    monkeypatch.setattr(onnx.checker, "check_model", lambda _: None)
    fxquant.export_onnx(linear, tmp_path / "m.onnx", X)
    assert "export_onnx: not verified: onnxruntime cannot load the file: " in caplog.text


def test_leaves_the_model_as_it_is(linear: nn.Module, tmp_path: Path) -> None:
    linear.train()
    text, state = fxquant.text(linear), linear.state_dict()
    fxquant.export_onnx(linear, tmp_path / "m.onnx", X)
    assert (fxquant.text(linear), linear.training) == (text, True)
    assert all(torch.equal(value, linear.state_dict()[name]) for name, value in state.items())
    assert not linear._forward_hooks
