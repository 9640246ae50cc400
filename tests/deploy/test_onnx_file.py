"""A model is written with its tensors or beside them, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxquant
from fxquant import StorageError
from fxquant.deploy import onnx_file

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

X = torch.randn(4, 64)


@pytest.fixture
def model() -> nn.Module:
    return fxquant.quantize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), [X])


def run(path: Path) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]


def test_tensors_of_a_large_model_lie_in_a_file_of_their_own(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    fxquant.export_onnx(model, small, X)
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 8000)
    for _ in range(2):  # a file that is there is replaced, not added to
        fxquant.export_onnx(model, large, X)
        files = {path.name for path in tmp_path.iterdir()}
        assert files == {"small.onnx", "large.onnx", "large.onnx.data"}
        assert 2 * 64 * 64 <= (tmp_path / "large.onnx.data").stat().st_size < 1.1 * 2 * 64 * 64
    assert large.stat().st_size < small.stat().st_size - 2 * 64 * 64 + 1000
    assert np.array_equal(run(small), run(large))


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20e9:
        pytest.skip("takes 14 GB of memory")
    rows = torch.randint(0, 1000, (4, 8))
    table = torch.zeros(540_000, 1000)
    table[:1000].normal_()
    model = nn.Sequential(nn.Embedding(540_000, 1000, _weight=table), nn.Linear(1000, 4))
    quantized = fxquant.quantize(model, [rows], progress=False)
    fxquant.export_onnx(quantized, tmp_path / "m.onnx", rows)  # runs it beside the model
    assert (tmp_path / "m.onnx.data").stat().st_size > 2**31


def test_both_files_are_replaced_or_neither(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    path.write_text("before")
    tensors.write_text("its tensors")
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 8000)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file, "flush", full)
    with pytest.raises(StorageError, match="No space left on device"):
        fxquant.export_onnx(model, path, X)
    assert (path.read_text(), tensors.read_text()) == ("before", "its tensors")
    assert sorted(tmp_path.iterdir()) == [path, tensors]


def test_a_graph_is_changed_without_its_tensors(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", 8000)
    path = tmp_path / "m.onnx"
    fxquant.export_onnx(model, path, X)
    before, expected = (tmp_path / "m.onnx.data").read_bytes(), run(path)

    def rename(changed: Any) -> None:
        changed.producer_name = "somebody"

    onnx_file.change_graph(path, rename)
    assert onnx.load(path).producer_name == "somebody"
    assert (tmp_path / "m.onnx.data").read_bytes() == before
    assert np.array_equal(run(path), expected)
