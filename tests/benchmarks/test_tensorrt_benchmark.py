"""The table of TensorRT's rules, on a small network."""

import pytest
import torch
from torch import nn

from benchmarks.deploy import tensorrt
from fxquant.deploy.onnx_links import Links
from tests.onnx_models import LAYER, onnx_model

pytest.importorskip("onnxscript")


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 28 * 28, 5)
    ).eval()


def test_a_row_counts_layers_and_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt, "build", lambda _: tiny())
    tensorrt.main(["squeezenet1_1"])
    name, layers, integer, errors, advice, decibels = capsys.readouterr().out.split("\n")[2].split()
    assert (name, layers, integer, errors, advice) == ("squeezenet1_1", "2", "2", "0", "0")
    assert float(decibels) > 20


def test_a_broken_rule_is_told_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["2", "2", "1", "0", "30.0"]
    monkeypatch.setattr(tensorrt, "measure", lambda _: (cells, ["error: conv: a zero-point"]))
    with pytest.raises(SystemExit, match="1"):
        tensorrt.main(["resnet18"])
    assert capsys.readouterr().out.splitlines()[-1] == "resnet18: error: conv: a zero-point"


def test_a_layer_reads_integers_with_both_operands() -> None:
    links = Links(onnx_model(f"{LAYER}\nn = Transpose<perm=[0,1,2,3]>(wd)\nout = Conv(x, n)"))
    assert tensorrt.reads_integers(links, "xd", "wd")
    assert tensorrt.reads_integers(links, "xd", "n")
    assert not tensorrt.reads_integers(links, "x", "n")
