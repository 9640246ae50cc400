"""The zoo's rows on small networks, without the packages that it takes models from."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from benchmarks.capture import zoo, zoo_models
from benchmarks.capture.multiply_adds import counting, counting_calls
from benchmarks.capture.naive_minmax import hooked_minmax
from benchmarks.capture.zoo_models import CRNN, NAMES, Subject, build, make_nontrivial
from benchmarks.capture.zoo_rows import Row, measure
from fxquant.int8.onednn import why_unavailable
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr


class Net(nn.Module):
    """A convolution with a batch norm, attention of one head, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)  # (N, 16, 8)
        scores = (y @ y.transpose(1, 2)).softmax(-1)  # (N, 16, 16)
        result: Tensor = self.head(scores @ y)
        return result


def images(number: int) -> Tensor:
    return torch.randn(number, 3, 8, 8)


def subject(model: nn.Module) -> Subject:
    make_nontrivial(model, images(4))
    return Subject(model, images)


def test_a_row_holds_what_became_of_the_model() -> None:
    row = measure("net", subject(Net()), stages=("lower", "save", "pickle"))
    layers, products = 2 * 16 * (27 * 8 + 8 * 5), 2 * 2 * 16 * 16 * 8
    assert row.graph == "whole"
    assert row.multiply_adds == layers / 1e9
    assert row.products == pytest.approx(100 * products / (layers + products))
    assert (row.quantized, row.recurrent, row.norms_left) == (100.0, 0.0, 0)
    assert min(row.decibels, row.naive_decibels) > 20
    ready = {"count", "naive", "quantize", "report", "run", "batches", "save", "pickle"}
    assert {stage for stage, passed in row.passed.items() if passed} >= ready
    assert row.agreements["batches"] > 100
    if why_unavailable() is None:
        assert row.failures == {}
        assert row.int8 == 100.0


class Refused(Net):
    """Cannot be traced, nor be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: Any = lambda: True

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9 or not self.ready():
            x = -x
        return super().forward(x)


def test_a_stage_that_fails_leaves_its_reason_and_lets_the_others_run() -> None:
    row = measure("refused", subject(Refused()), stages=("save", "pickle"))
    assert row.graph == "2"
    assert not row.passed["pickle"]
    assert "pickle" in row.failures["pickle"]
    assert row.passed["batches"]
    assert (row.norms_left, row.norms_behind_layers) == (1, 0)  # in Python, between two regions
    assert any(line.startswith("(the model): Refused: ") for line in row.in_python)


def test_a_model_that_cannot_be_prepared_gets_a_row() -> None:
    row = measure("relu", subject(nn.ReLU()))
    assert row.failures["quantize"].startswith("CaptureError: ReLU has nothing to quantize")
    assert "lower" not in row.passed
    assert math.isnan(row.seconds)


def test_a_captured_model_that_computes_something_else_is_found() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(x * self.sign)
            return result

        sign = 1.0

    model = subject(Two()).model
    calls: list[int] = []

    def batch(number: int) -> Tensor:
        calls.append(number)
        if len(calls) == 2:  # behind the example: captured already
            Two.sign = 3.0
        return images(number)

    row = measure("two", Subject(model, batch), stages=())
    assert row.failures["batches"].startswith("ValueError: batches of 1 agree to ")


def test_multiply_adds_of_recurrent_layers_are_those_counted_by_hand() -> None:
    model = CRNN().eval()
    with torch.no_grad(), counting(model) as counted:
        model(torch.randn(2, 1, 32, 96))
    pixels = 2 * 32 * 96
    convolutions = pixels * 9 * (32 + 32 * 64 // 4 + 64 * 128 // 16)
    steps, gates = 2 * 12, 4 * 64
    assert counted.layers == convolutions + steps * 128 * 10
    assert counted.recurrent == steps * 2 * gates * (512 + 64 + 128 + 64)
    assert counted.products == 0


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), 2 * 36 * 6 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 8, 8), 2 * 64 * 4 * 3 * 9),
        (nn.Linear(4, 6), (2, 5, 4), 2 * 5 * 24),
    ],
)
def test_quantized_layers_count_as_float_ones(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    x = torch.randn(shape)
    quantized = fxquant.quantize(nn.Sequential(layer), [x])
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    with torch.no_grad(), counting(layer) as counted:
        layer(x)
    with torch.no_grad(), counting_calls(layers) as calls:
        quantized(x)
    assert counted.layers == expected
    assert list(calls.values()) == [expected]


def test_the_hooked_baseline_rounds_inputs_and_weights_of_a_copy() -> None:
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.ConvTranspose1d(8, 4, 1)).eval(), None
    x = torch.randn(32, 8, 16)
    before = [each.clone() for each in model.parameters()]
    simulated = hooked_minmax(model, lambda each: each(x))
    for ours, theirs in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert 30 < sqnr(model(x), simulated(x)) < 60
    weight: Any = simulated.get_submodule("2").weight
    assert all(len(set(channel.tolist())) <= 255 for channel in weight[:, :, 0].t())


def test_statistics_and_constants_become_nontrivial() -> None:
    model = Net()
    nn.init.zeros_(model.head.weight)
    make_nontrivial(model, images(4))
    assert not model.training
    assert not model.norm.training
    assert model.norm.momentum == 0.1
    for values in (model.norm.running_mean, model.norm.weight, model.head.weight):
        assert values is not None
        assert len(set(values.flatten().tolist())) == values.numel()


def test_names_are_of_families_that_are_known() -> None:
    assert len(NAMES) == len(set(NAMES)) == 73
    for name in NAMES:
        assert name.partition(":")[0] in zoo_models._FAMILIES
    with pytest.raises(ValueError, match="'resnet18': names start with one of timm, yolo, "):
        build("resnet18")
    with pytest.raises(ValueError, match="nn:mlp: there are nn:crnn and nn:transformer_encoder"):
        build("nn:mlp")
    assert build("nn:transformer_encoder").batch(3).shape == (3, 16, 64)


def test_rows_are_written_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "a:one": Row("a:one", "whole", 1.5, 99.96, norms_left=3, passed={"lower": True}),
        "a:two": Row("a:two", failures={"quantize": "CaptureError: no"}, in_python=["x: y: z"]),
    }
    monkeypatch.setattr(zoo, "run", lambda name, *_: rows[name])
    with pytest.raises(SystemExit):
        zoo.main([*rows, "--out", str(tmp_path / "rows.jsonl")])
    printed = capsys.readouterr().out
    assert "a:one    whole    1.50" in printed
    assert "100.0" in printed
    assert "a:two    quantize  CaptureError: no" in printed
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert str(zoo.read_rows(lines)[1]) == str(rows["a:two"])  # NaN is not equal to itself
    again = json.dumps(asdict(Row("a:two", "3")))
    assert [row.graph for row in zoo.read_rows([*lines, again])] == ["whole", "3"]
    zoo.main(["--show", str(tmp_path / "rows.jsonl"), "--regions"])
    assert "a:two    x: y: z" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.run("nn:mlp").failures["build"].startswith("ValueError: nn:mlp: there are")
    assert zoo.run("nn:crnn").passed["onnx"]
    assert zoo.run("nn:crnn", seconds=0).failures == {"process": "no answer after 0 s"}
