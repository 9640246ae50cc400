"""The GPU's benchmark, as far as a CPU can run it."""

import argparse
import json
import re
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu
from benchmarks.peers.serving import Refused
from benchmarks.peers.tensorrt_engine import build, integer_convolutions
from benchmarks.rounding import on_device
from benchmarks.running import limited
from benchmarks.running.limited import Parts, run_limited
from benchmarks.running.racing import Dropped
from fxquant.deploy.tensorrt_rules import check


def parts(folder: Path, seconds: float = 60.0) -> Parts:
    return Parts(folder, time.perf_counter() + seconds)


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_one_sentence_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        SystemExit, match=r"PyTorch 2.* finds no NVIDIA GPU here; on the CPU"
    ) as end:
        gpu.main([])
    assert isinstance(end.value.code, str)  # printed, and the exit status is 1


def test_a_part_that_fails_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    def fail(_: float) -> str:
        raise Dropped("no such package")

    done = parts(tmp_path, 60)
    done.do("a", 30, fail)
    done.do("b", 30, lambda limit: f"{limit:.0f} s")
    done.end = time.perf_counter()
    done.do("c", 30, lambda _: "never")
    assert [(row.result, row.has_failed) for row in done.rows] == [
        ("no such package", True), ("30 s", False), ("no time left", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('bits=9')", "fails: ValueError: bits=9"),
        ("import os; os.kill(os.getpid(), 11)", "crashes: signal 11"),
    ],
)
def test_a_command_that_fails_says_why(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(Dropped, match=reason):
        run_limited([sys.executable, "-c", code], max_seconds=60, log=tmp_path / "log")


def test_a_command_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(Dropped, match="no end after 1 s"):
        run_limited(["sh", "-c", script], max_seconds=0.6, log=tmp_path / "log")
    child = int((tmp_path / "child").read_text())
    deadline = time.perf_counter() + 10
    while _runs(child) and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_pytest_counts() -> None:
    assert gpu.counts("....F [100%]\n=== FAILURES ===\n1 failed, 9 passed in 3.21s\n") == (
        "1 failed, 9 passed in 3.21s"
    )
    assert (
        gpu.counts("===== 9 skipped in 61.00s (0:01:01) =====") == "9 skipped in 61.00s (0:01:01)"
    )
    assert gpu.counts("no module named pytest") is None


def test_the_tests_of_the_gpu_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, log: Path, **_: Any) -> None:
        assert [Path(each).name for each in command[4:]] == ["test_cuda.py"]
        log.write_text("9 passed in 3.21s")

    monkeypatch.setattr(gpu, "run_limited", run)
    assert gpu._tests(parts(tmp_path), 60.0) == "9 passed in 3.21s"


@pytest.mark.parametrize("recipe", on_device.RECIPES)
def test_a_network_is_quantized_on_a_device(tmp_path: Path, recipe: str) -> None:
    torch.save(tiny(), tmp_path / "model.pt")
    torch.save(torch.randn(8, 3, 8, 8), tmp_path / "images.pt")
    files = [*gpu._shared(tmp_path), "--out", str(tmp_path / "out.json")]
    on_device.main([recipe, "--device", "cpu", "--steps", "2", *files])
    result = json.loads((tmp_path / "out.json").read_text())
    assert min(result[step] for step in ("prepare", "calibrate", "convert")) > 0
    assert result["decibels"] > 10
    assert (result["export"], result["peak_gb"], result["device"]) == (0, None, "cpu")


def test_a_file_for_tensorrt_keeps_to_its_rules(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    result = on_device.measure(
        tiny(), torch.randn(8, 3, 8, 8), recipe="tensorrt", steps=1, device="cpu",
        onnx=tmp_path / "model.onnx",
    )  # fmt: skip
    assert result.export > 0
    assert result.rules == [str(each) for each in check(tmp_path / "model.onnx")] == []


def test_the_cpu_runs_what_needs_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "benchmarks.rounding.on_device"]
        on_device.main(command[3:])

    monkeypatch.setattr(gpu, "run_limited", run)
    monkeypatch.setattr(gpu, "build", lambda _: tiny())
    gpu.main(["--device", "cpu", "--size", "8", "--images", "4", "--batch", "2", "--steps", "1"])
    table = capsys.readouterr().out
    assert len(re.findall(r"prepare [\d.]+ s, calibrate [\d.]+ s, convert [\d.]+ s", table)) == 6


def test_what_cannot_be_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise Dropped(f"fails: no {command[-1]}")

    monkeypatch.setattr(gpu, "run_limited", run)
    options = argparse.Namespace(environments=tmp_path)
    with pytest.raises(Dropped, match="aimet==1 cannot be installed: fails: no aimet==1"):
        gpu._install(parts(tmp_path), options, "aimet", "aimet==1")


def test_aimet_gets_the_same_files_and_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        (tmp_path / "aimet.json").write_text('{"seconds": 61.23, "decibels": 17.04}')

    monkeypatch.setattr(gpu, "run_limited", run)
    python: Future[str] = Future()
    python.set_result("aimet/bin/python")
    options = argparse.Namespace(device="cuda", steps=200)
    assert gpu._aimet(parts(tmp_path), options, python, 60.0) == "61.2 s; 17.0 dB"
    given = dict(zip(commands[0][2::2], commands[0][3::2], strict=True))
    assert (given["--model"], given["--images"]) == (
        str(tmp_path / "model.pt"), str(tmp_path / "images.pt")
    )  # fmt: skip
    assert (given["--bits"], given["--steps"], given["--device"]) == ("4", "200", "cuda")
    missing: Future[str] = Future()
    missing.set_exception(Dropped("aimet cannot be installed"))
    with pytest.raises(Dropped, match="aimet cannot be installed"):
        gpu._aimet(parts(tmp_path), options, missing, 60.0)


def test_tensorrt_says_what_it_runs_in_int8() -> None:
    """As in "Engine Inspector" of its documentation."""
    integer = {
        "LayerType": "CaskConvolution", "ParameterType": "Convolution",
        "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8"}],
        "Weights": {"Type": "Int8", "Count": 131072},
    }  # fmt: skip
    dynamic = integer | {"Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}
    in_float = integer | {
        "Inputs": [{"Format/Datatype": "Row major linear FP32"}], "Weights": {"Type": "Float"}
    }  # fmt: skip
    pooling = {"LayerType": "CaskPooling", "ParameterType": "Pooling", "Inputs": []}
    assert integer_convolutions([integer, dynamic, in_float, pooling, "fc + relu"]) == (2, 3)


class FakeTensorRT:
    """As much of TensorRT's interface as `build` takes, which notes what is set."""

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    def __init__(self, errors: list[str], serialized: Any) -> None:
        self.noted: list[Any] = []
        self._errors, self._serialized = errors, serialized

    def Builder(self, logger: Any) -> Any:
        config = SimpleNamespace(add_optimization_profile=self.noted.append)
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(
                flags=flags, get_input=lambda _: SimpleNamespace(name="x")
            ),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda *given: self.noted.append(given)
            ),
            build_serialized_network=lambda network, config: self._serialized,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        assert network.flags == 2
        return SimpleNamespace(
            parse_from_file=lambda _: not self._errors,
            num_errors=len(self._errors),
            get_error=lambda number: SimpleNamespace(desc=lambda: self._errors[number]),
        )


def test_tensorrt_builds_for_the_batch_or_says_why_not() -> None:
    logger, shape = SimpleNamespace(errors=["no kernel for conv1"]), (4, 3, 8, 8)
    fake = FakeTensorRT([], b"engine")
    assert build(fake, logger, Path("m.onnx"), shape) == b"engine"
    assert fake.noted[0] == ("x", shape, shape, shape)
    with pytest.raises(Refused, match="its parser: zero point"):
        build(FakeTensorRT(["zero point"], None), logger, Path("m.onnx"), shape)
    with pytest.raises(Refused, match="its builder: no kernel for conv1"):
        build(FakeTensorRT([], None), logger, Path("m.onnx"), shape)


def test_rows_are_told_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(tmp_path).do("suite", 5, lambda _: "9 passed")
    assert capsys.readouterr().err == "suite: 9 passed\n"
    assert parts(tmp_path).log("suite") == tmp_path / "suite.log"
    assert limited.Row("a", 1.0, "b").has_failed is False
