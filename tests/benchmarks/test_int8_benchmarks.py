"""The benchmarks of int8 inference on small things, without the peers' environments."""

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import fxquant
from benchmarks.int8 import (
    int8_contestants,
    int8_own,
    int8_parity,
    int8_sizes,
    int8_speed,
    where_time_goes,
)
from benchmarks.int8.int8_contestants import ANCHOR, ENTRIES, Files, digest_of_sources, least_sqnr
from benchmarks.int8.int8_speed import Cell, Results, chosen, measure, table
from benchmarks.networks import int8_networks
from benchmarks.networks.int8_networks import Detector, Network, images, network
from benchmarks.peers import serving
from benchmarks.peers.serving import Task
from benchmarks.peers.torch_arrays import tensors
from benchmarks.running import environments
from benchmarks.running.environments import Environment
from benchmarks.running.racing import Contestant, Dropped, race, reproduced
from fxquant.int8.onednn import why_unavailable
from fxquant.programs import why_unavailable as why_no_programs

needs_programs = pytest.mark.skipif(why_no_programs() is not None, reason=str(why_no_programs()))
needs_kernels = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    ).eval()


def contestant(tmp_path: Path, code: str, max_seconds: float = 60.0) -> Contestant:
    """Return a process that runs `code`, a program of a few lines."""
    command = [sys.executable, "-c", textwrap.dedent(code), "variant"]
    np.savez(tmp_path / "inputs.npz", calibration=np.ones((2, 3)), test=np.ones((5, 3)))
    command += ["--model", "none", "--inputs", str(tmp_path / "inputs.npz"), "--batch", "2"]
    command += ["--outputs", str(tmp_path / "outputs.npz"), "--threads", "1"]
    return Contestant(command, threads=1, log=tmp_path / "log.txt", max_seconds=max_seconds)


SERVE = """
    from benchmarks.peers.serving import Ready, Refused, serve
    def prepare(task):
        print("a library says hello")
        {preparation}
        return Ready(lambda batch: [2 * batch, batch.sum(axis=1)], "doubled")
    serve(prepare)
"""


def test_a_contestant_writes_its_outputs_and_takes_turns(tmp_path: Path) -> None:
    with contestant(tmp_path, SERVE.format(preparation="")) as each:
        assert each.get_ready() == "doubled"
        assert 0 <= each.take_turn() < 60
        assert race({"doubler": each}, repeats=3).keys() == {"doubler"}
    assert each.process.poll() is not None
    assert "hello" in (tmp_path / "log.txt").read_text()
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["0"].tolist() == [[2.0] * 3] * 6  # 5 images, filled up to 3 batches of 2
        assert outputs["1"].tolist() == [3.0] * 6


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (SERVE.format(preparation="raise Refused('cannot capture: loops')"), "cannot capture: loo"),
        (SERVE.format(preparation="raise ValueError('bits=9')"), "fails: ValueError: bits=9"),
        ("import sys; sys.exit('no such module')", "fails: no such module"),
        ("import os; os.kill(os.getpid(), 11)", "crashes: signal 11"),
    ],
)
def test_what_keeps_a_contestant_out_is_told(tmp_path: Path, code: str, reason: str) -> None:
    with contestant(tmp_path, code) as each, pytest.raises(Dropped, match=reason):
        each.get_ready()


def test_a_contestant_that_says_nothing_is_out(tmp_path: Path) -> None:
    with (
        contestant(tmp_path, "import time; time.sleep(60)", max_seconds=0.1) as each,
        pytest.raises(Dropped, match=r"no answer after 0 s"),
    ):
        each.get_ready()


class Runner:
    """Takes turns of given seconds; drops out where there are none left."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def take_turn(self) -> float:
        if not self.seconds:
            raise Dropped("crashes: signal 9")
        return self.seconds.pop(0)


def test_a_race_gives_medians_and_goes_on_without_who_drops_out() -> None:
    runners: dict[str, Any] = {"a": Runner(3.0, 1.0, 2.0), "b": Runner(1.0)}
    times = race(runners, repeats=3)
    assert times["a"] == 2.0
    assert str(times["b"]) == "crashes: signal 9"


def test_what_two_races_agree_on_counts_and_the_others_run_again() -> None:
    steady, unlucky, wild = Runner(1.0, 1.02), Runner(9.0, 2.0, 2.05), Runner(4.0, 3.0, 2.0, 1.0)
    runners: dict[str, Any] = {"steady": steady, "unlucky": unlucky, "wild": wild}
    runners["out"] = Runner()
    times, doubts = reproduced(runners, repeats=1, most_races=4)
    assert (times["steady"], times["unlucky"], times["wild"]) == (1.0, 2.0, 1.0)
    assert str(times["out"]) == "crashes: signal 9"
    assert doubts == {"wild": 1.0, "out": math.inf}  # 1 s and 2 s
    assert not steady.seconds
    assert not unlucky.seconds


def test_the_last_batch_is_filled_up() -> None:
    batches = serving.batches_of(np.arange(5, dtype=np.float32).reshape(5, 1), 2)
    assert [batch.ravel().tolist() for batch in batches] == [[0, 1], [2, 3], [4, 4]]
    assert serving.batches_of(np.zeros((0, 3), np.float32), 2) == []


def test_a_reason_is_one_short_line() -> None:
    assert serving.brief(ValueError("\n bits=9:\n choose 8")) == "ValueError: bits=9:"
    assert serving.brief(KeyError()) == "KeyError"
    assert len(serving.brief(ValueError("x" * 500))) == 90


def test_the_faster_way_is_taken() -> None:
    calls = {"slow": 0, "fast": 0}

    def run(name: str, work: int) -> list[np.ndarray]:
        calls[name] += 1
        return [np.ones(work).cumsum()]

    ways: dict[str, serving.Run] = {
        "slow": lambda _: run("slow", 3_000_000), "fast": lambda _: run("fast", 10)
    }  # fmt: skip
    ready = serving.faster_of(ways, np.zeros((1, 3), np.float32), repeats=2)
    assert ready.note == "fast"
    assert calls == {"slow": 3, "fast": 3}


def test_an_environment_is_made_once_for_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "peer" / "packages").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    packages = str(tmp_path / "peer" / "packages")
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: f"{packages}\n")
    old, new = Environment("peer", ("a==1", "b==2")), Environment("peer", ("a==2",))
    python = environments.interpreter(old, tmp_path)
    assert python == tmp_path / "peer" / "bin" / "python"
    assert commands[1] == [str(python), "-m", "pip", "install", "-q", "a==1", "b==2"]
    assert environments.interpreter(old, tmp_path) == python
    assert len(commands) == 2
    environments.interpreter(new, tmp_path)
    assert len(commands) == 4
    shared = Path(packages, "host.pth").read_text().strip()
    assert (Path(shared) / "torch").is_dir() or shared == torch.__path__[0].removesuffix("/torch")


def test_what_pip_says_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, "pip" in command, "", "no a==3 in the index")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: f"{tmp_path}\n")
    with pytest.raises(SystemExit, match="peer: pip failed:\nno a==3 in the index"):
        environments.interpreter(Environment("peer", ("a==3",)), tmp_path)
    assert not (tmp_path / "peer" / "installed.txt").exists()


def test_random_networks_are_the_same_each_time() -> None:
    wanted = Network("squeezenet1_1", batch=2, size=64)
    model, x = int8_networks.build(wanted), images(wanted, 2, seed=1)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(int8_networks.build(wanted)(x), model(x))
    assert torch.equal(images(wanted, 2, seed=1), x)
    assert not torch.equal(images(wanted, 2, seed=2), x)


def test_weights_of_the_folder_are_taken(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeezenet1_1.pth")
    wanted = network("squeezenet1_1", 4, tmp_path)
    assert wanted.weights == tmp_path / "squeezenet1_1.pth"
    assert wanted.identity() != network("squeezenet1_1", 4).identity()
    assert network("resnet18", 4, tmp_path) == Network("resnet18", 4, 224)
    assert network("retinanet_resnet50_fpn", 4) == Network("retinanet_resnet50_fpn", 1, 256)


def test_the_body_of_yolo_gives_three_maps() -> None:
    wanted = network(int8_networks.YOLO_BODY, 4)
    assert (wanted.batch, wanted.num_compared) == (1, 3)
    small = Network(wanted.name, batch=1, size=64)
    body = int8_networks.build(small)
    with torch.no_grad():
        maps = list(tensors(body(images(small, 1, seed=1))))
    assert [tuple(each.shape) for each in maps] == [(1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]
    assert sum(isinstance(module, nn.Conv2d) for module in body.modules()) == 45


class Backbone(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())


def test_a_detector_returns_what_its_head_says() -> None:
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    retinanet = RetinaNet(Backbone(), 3, 64, 64, anchor_generator=anchors).eval()
    nn.init.zeros_(retinanet.head.classification_head.cls_logits.bias)
    heads: list[Any] = []
    retinanet.head.register_forward_hook(lambda _, __, output: heads.append(output))
    detector = Detector(retinanet)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        scores, boxes, *found = detector(x)
        assert torch.equal(scores, heads[0]["cls_logits"].flatten(1))
        assert torch.equal(boxes, heads[0]["bbox_regression"].flatten(1))
        assert [each.shape[1:] for each in found] == [(4,), (), ()]
        assert torch.equal(copy.deepcopy(detector)(x)[0], scores)
        quantized = fxquant.quantize(detector, [x], progress=False)
        assert least_sqnr([scores, boxes], list(tensors(quantized(x)))[:2], count=2) > 20


def test_the_worst_output_counts() -> None:
    one = torch.ones(2)
    found = [1.1 * one, 1.2 * one, torch.zeros(2)]
    assert least_sqnr([one] * 3, found, count=1) == pytest.approx(20, abs=0.01)
    assert least_sqnr([one] * 3, found, count=2) == pytest.approx(13.98, abs=0.01)


@needs_kernels
@pytest.mark.parametrize("variant", ["eager", "lowered"])
def test_own_contestants_compute_the_network(tmp_path: Path, variant: str) -> None:
    model, x = tiny(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    saved = fxquant.quantize(model, [x], progress=False) if variant == "lowered" else model
    torch.save(saved, tmp_path / "model.pt")
    batch = x.numpy()
    task = Task(variant, tmp_path / "model.pt", [batch], [batch], threads=1, detector=False)
    ready = int8_own.prepare(task)
    assert ready.note in ("NCHW", "channels_last")
    actual = [torch.from_numpy(each) for each in ready.run(batch)]
    assert least_sqnr([expected], actual, count=1) > (100 if variant == "eager" else 25)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr(int8_contestants, "build", lambda wanted: tiny())
    log = tmp_path / "logs" / "files.txt"
    return Files(Network("resnet18", 2, 8), tmp_path, tmp_path / "peers", threads=1, log=log)


def test_files_are_made_once(files: Files) -> None:
    path = files.get(int8_contestants.QUANTIZED)
    quantized = torch.load(path, weights_only=False)
    assert least_sqnr(files.expected, [quantized(files.test)], count=1) > 20
    path.write_text("not made again")
    assert files.get(int8_contestants.QUANTIZED).read_text() == "not made again"


def test_why_a_file_cannot_be_made_is_told_to_all_who_need_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        os.write(2, b"a graph of 5,000 lines")
        raise fxquant.LoweringError("it has a loop")

    monkeypatch.setattr(fxquant, "export_onnx", refuse)
    for _ in range(2):
        with pytest.raises(Dropped, match=r"^cannot export: LoweringError: it has a loop$"):
            files.get(int8_contestants.FOR_ONNXRUNTIME)
    assert files.log.read_text() == "a graph of 5,000 lines"
    monkeypatch.setitem(files._makers, int8_contestants.FLOAT, lambda path: path.unlink())
    with pytest.raises(Dropped, match=r"^fails: FileNotFoundError"):
        files.get(int8_contestants.FLOAT)


def test_contestants_have_names_and_versions_of_what_they_use() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    versions = {entry.name: entry.versions() for entry in ENTRIES}
    assert versions["float, eager"] == {"torch": torch.__version__}
    assert versions["torchao PT2E"]["torchao"].startswith("torchao==")
    assert versions["fxquant in onnxruntime"].keys() == {"torch", "onnxruntime", "fxquant"}
    assert versions["fxquant"]["fxquant"] == digest_of_sources()


def test_figures_depend_on_every_file_of_fxquant() -> None:
    names = {path.name for path in int8_contestants.sources()}
    assert {"placement.py", "insert_observers.py", "api.py"} <= names


def test_contestants_are_chosen_by_name() -> None:
    assert [entry.name for entry in chosen(["fxquant*", "float, eager"])] == [
        "float, eager",
        "fxquant in onnxruntime",
        "fxquant in OpenVINO",
        "fxquant",
        "fxquant, torch.compile",
    ]
    assert {entry.name for entry in ENTRIES} - {entry.name for entry in chosen([])} == {
        "float, onnxruntime",
        "float, OpenVINO",
    }
    with pytest.raises(SystemExit, match="--contestants 'tvm' matches none of: float, eager; "):
        chosen(["tvm"])


def cell(entry: int8_contestants.Entry, wanted: Network, **fields: Any) -> Cell:
    return Cell(wanted.identity(), entry.name, entry.versions(), 2, repeats=5, **fields)


def test_results_are_found_again_until_something_changes(tmp_path: Path) -> None:
    wanted, entry = Network("resnet18", 4, 224), ENTRIES[-1]
    results = Results(tmp_path / "folder" / "results.json")
    results.add([cell(entry, wanted, milliseconds=20.0, decibels=30.0)])
    results.add([cell(entry, wanted, milliseconds=19.0, decibels=30.0)])
    assert len(results.cells) == 1
    again = Results(tmp_path / "folder" / "results.json")
    found = again.find(wanted, entry, 2, repeats=5)
    assert found is not None
    assert found.milliseconds == 19.0
    assert again.find(wanted, entry, 2, repeats=6) is None
    assert again.find(wanted, entry, 1, repeats=5) is None
    assert again.find(wanted, ANCHOR, 2, repeats=5) is None
    assert again.find(Network("resnet18", 8, 224), entry, 2, repeats=5) is None
    text = (tmp_path / "folder" / "results.json").read_text()
    (tmp_path / "old.json").write_text(text.replace(digest_of_sources(), "another"))
    assert Results(tmp_path / "old.json").find(wanted, entry, 2, repeats=5) is None


def test_the_table_has_times_noise_and_reasons(tmp_path: Path) -> None:
    wanted, results = Network("resnet18", 4, 224), Results(tmp_path / "results.json")
    results.add(
        [
            cell(ENTRIES[0], wanted, milliseconds=40.04, anchor=40.04),
            cell(ENTRIES[1], wanted, milliseconds=20.0, decibels=36.52, anchor=41.0),
            cell(ENTRIES[4], wanted, note="cannot capture: loops"),
        ]
    )
    entries = [ENTRIES[each] for each in (0, 1, 4, 5)]
    lines = table([wanted], entries, partial(results.find, threads=2, repeats=5)).splitlines()
    lines = [" ".join(line.split()) for line in lines if not line.startswith("--")]
    assert lines == [
        "network float, eager float, torchao PT2E onnxruntime",
        "torch.compile",
        "resnet18 4×224² 40.0 20.0 cannot capture:",
        "exact 36.5 dB loops",
        "resnet18: several races; float, eager took 40.0 to 41.0 ms in them",
    ]


def test_a_race_on_a_network_gives_a_cell_for_each(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Contestant] = {}

    def start(entry: int8_contestants.Entry, log: Path, max_seconds: float) -> Contestant:
        if entry is ENTRIES[1]:
            raise Dropped("cannot capture: loops")
        started[entry.name] = contestant(tmp_path, SERVE.format(preparation=""), max_seconds)
        return started[entry.name]

    monkeypatch.setattr(files, "start", start)
    monkeypatch.setattr(files, "agreement", lambda entry: 30.0 if entry is ENTRIES[2] else np.inf)
    monkeypatch.setattr(int8_speed, "Files", lambda *_: files)
    options = argparse.Namespace(peers=tmp_path, threads=1, repeats=2, max_seconds=60.0, busy=1)
    anchor, dropped, other = measure(files.network, ENTRIES[:3], options)
    assert anchor.milliseconds == anchor.anchor == other.anchor
    assert (anchor.decibels, other.decibels) == (None, 30.0)
    assert (dropped.milliseconds, dropped.note) == (None, "cannot capture: loops")
    assert other.note == "doubled"
    assert all(each.process.poll() is not None for each in started.values())


def test_only_what_is_missing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raced: list[list[str]] = []

    def race_all(wanted: Network, entries: list[int8_contestants.Entry], _: Any) -> list[Cell]:
        raced.append([entry.name for entry in entries])
        return [cell(entry, wanted, milliseconds=1.0 * len(raced)) for entry in entries]

    monkeypatch.setattr(int8_speed, "measure", race_all)
    command = [
        "int8_speed",
        "--models",
        "resnet18",
        "--batch",
        "4",
        "--results",
        str(tmp_path / "r.json"),
    ]
    command += ["--repeats", "5", "--json", "--contestants"]
    printed = []
    for globs in (["float, eager", "fxquant"], ["fxquant", "onnxruntime"], ["fxquant"]):
        monkeypatch.setattr(sys, "argv", [*command, *globs])
        int8_speed.main()
        cells = json.loads(capsys.readouterr().out)
        printed.append({each["contestant"]: each["milliseconds"] for each in cells})
    assert raced == [["float, eager", "fxquant"], ["float, eager", "onnxruntime"]]
    assert printed == [
        {"float, eager": 1.0, "fxquant": 1.0}, {"onnxruntime": 2.0, "fxquant": 1.0},
        {"fxquant": 1.0},
    ]  # fmt: skip


def test_differences_of_logits_count_in_steps_of_their_range() -> None:
    simulated = torch.tensor([[0.0, 255.0], [30.0, 20.0]])
    shifted = torch.tensor([[2.0, 255.0], [30.0, 31.0]])
    rows = int8_parity.compare_logits(
        {"same": simulated, "other": shifted}, simulated, torch.tensor([1, 1])
    )
    assert [vars(row) for row in rows] == [
        {"name": "same", "top1": 50.0, "equal": 100.0, "steps": 0.0},
        {"name": "other", "top1": 100.0, "equal": 50.0, "steps": 11.0},
    ]
    assert int8_parity.table(rows).splitlines()[-1].split() == ["other", "100.0", "50.0", "11.00"]


def test_needed_bytes_are_those_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7))
    weights, outputs = 5 * 27 + 7 * 180, 5 + 7
    x = torch.randn(2, 3, 8, 8)
    for bits in (8, 3):
        quantized = fxquant.quantize(model, [x], fxquant.Recipe.minmax(weight_bits=bits))
        assert int8_sizes.needed_bytes(quantized) == weights * bits / 8 + 8 * outputs
        assert int8_sizes.needed_bytes(quantized, 32) == weights * 4 + 4 * outputs


@needs_kernels
def test_sizes_of_a_network_fill_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: nn.Module, path: Path, *, example_inputs: Tensor) -> None:
        raise fxquant.LoweringError("it has a loop")

    monkeypatch.setattr(int8_sizes, "build", lambda wanted: tiny())
    monkeypatch.setattr(int8_sizes, "LOG", tmp_path / "log.txt")
    monkeypatch.setattr(fxquant, "export_onnx", refuse)
    cells = int8_sizes.sizes_of(Network("resnet18", 2, 8), (8, 2))
    assert list(cells) == ["float", "8 bits", "8 bits, lowered", "8 bits, ONNX", "2 bits"]
    assert cells["8 bits, ONNX"] == "LoweringError: it has a loop"
    sizes = {name: float(text.split()[0]) for name, text in cells.items() if "Error" not in text}
    assert sizes["2 bits"] <= sizes["8 bits"] <= sizes["float"]
    assert "it has a loop" in int8_sizes.table({"tiny": cells}).replace("\n", " ")


@needs_programs
def test_where_the_time_goes_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    where_time_goes.main(["--models", "resnet20", "--repeats", "2", "--threads", "1"])
    printed = capfd.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("resnet20 1×32²"))
    _, _, steps, graph, program, kernels, *_ = row.split()
    assert int(steps) > 20
    assert 0 < float(kernels) < float(program) < float(graph)
    assert "convolution, " in printed
