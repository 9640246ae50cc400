"""The benchmarks of files in their runtimes on small things, without the peers' environments."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.deploy import duel, executorch, openvino
from benchmarks.deploy.onnxruntime import DUEL
from benchmarks.int8.int8_speed import Cell
from benchmarks.networks import int8_networks
from benchmarks.networks.int8_networks import Network, images, network


def cell(milliseconds: float | None, decibels: float | None, note: str = "") -> Cell:
    return Cell({}, "somebody", {}, 2, milliseconds, decibels, note)


def test_who_is_slower_or_further_from_float_is_behind() -> None:
    theirs = cell(10.0, 35.0)
    assert not duel.is_behind(cell(10.4, 36.0), theirs, most=1.05)
    assert duel.is_behind(cell(10.6, 36.0), theirs, most=1.05)
    assert duel.is_behind(cell(9.0, 34.8), theirs, most=1.05)
    assert not duel.is_behind(cell(9.0, 34.95), theirs, most=1.05)
    assert duel.is_behind(cell(None, None), theirs, most=1.05)
    assert not duel.is_behind(cell(99.0, 1.0), cell(None, None), most=1.05)
    assert not duel.is_behind(cell(10.0, None), theirs, most=1.05)  # exact


def test_a_row_has_both_sides_of_each_figure() -> None:
    ours, theirs = cell(10.04, 43.26, "20 of 20"), cell(10.0, 35.3, "21 of 21")
    assert duel.row(ours, theirs) == [
        "10.0", "10.0", "1.00", "43.3", "35.3", "20 of 20", "21 of 21"
    ]  # fmt: skip
    out = cell(None, None, "cannot export: a loop")
    assert duel.row(out, theirs) == [
        "", "10.0", "", "", "35.3", "cannot export: a loop", "21 of 21"
    ]  # fmt: skip


def test_a_race_that_falls_short_ends_with_its_networks_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raced: list[Network] = []

    def measure(wanted: Network, *_: Any) -> list[Cell]:
        raced.append(wanted)
        unlucky = 15.0 if len(raced) == 1 else 10.0
        return [cell(20.0 if wanted.name == "resnet50" else unlucky, 43.0), cell(10.0, 35.0)]

    monkeypatch.setattr(duel, "measure", measure)
    with pytest.raises(SystemExit, match=r"than asked: resnet50$"):
        duel.run(DUEL, ["resnet18", "resnet50", "--batch", "2", "--races", "2"])
    assert [(each.name, each.batch) for each in raced] == [
        *[("resnet18", 2)] * 2,
        *[("resnet50", 2)] * 2,
    ]
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "resnet50",
        "2×224²",
        *["20.0", "10.0", "2.00", "43.0", "35.0"],
    ]


def test_a_duel_has_networks_and_columns_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = [cell(10.0, 43.0, "3 of 3, 1"), cell(10.0, 35.0, "3 of 3, 1")]
    monkeypatch.setattr(duel, "measure", lambda *_: measure)
    duel.run(executorch.DUEL, [])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[3:]] == list(executorch.DUEL.networks)
    assert printed.count("integer layers, most steps") == 2
    assert openvino.DUEL.networks == DUEL.networks


def test_linear_layers_take_small_images() -> None:
    wanted = network(int8_networks.LINEAR_LAYERS, 2)
    assert wanted.kind == "classifier"
    with torch.no_grad():
        assert int8_networks.build(wanted)(images(wanted, 2, seed=1)).shape == (2, 10)


def test_weights_and_images_of_a_folder_are_taken(tmp_path: Path) -> None:
    assert duel.subject("mobilenet_v2", 4, tmp_path) == network("mobilenet_v2", 4)
    for name in ("imagenet_mobilenet_v2", "cifar10_resnet20"):
        tmp_path.joinpath(f"{name}.safetensors").touch()
    found = duel.subject("mobilenet_v2", 4, tmp_path)
    assert found.weights == tmp_path / "imagenet_mobilenet_v2.safetensors"
    assert found.photos == tmp_path / "imagenet" / "val"
    found = duel.subject("resnet20", 4, tmp_path)
    assert (found.size, found.photos) == (32, tmp_path / "cifar10.npz")
    assert found.identity() != Network("resnet20", 4, 32, found.weights).identity()


def test_photos_are_others_for_calibration_than_for_comparison(tmp_path: Path) -> None:
    photos = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1)
    np.savez(tmp_path / "photos.npz", test_x=np.broadcast_to(photos, (64, 32, 32, 3)))
    wanted = Network("resnet20", 4, 32, photos=tmp_path / "photos.npz")
    calibration, test = images(wanted, 4, seed=1), images(wanted, 4, seed=2)
    assert calibration.shape == (4, 3, 32, 32)
    assert not torch.equal(calibration, test)
    with torch.no_grad():
        assert int8_networks.build(wanted)(test).shape == (4, 10)


def test_integer_convolutions_are_those_of_the_optimized_graph() -> None:
    pytest.importorskip("onnxruntime")
    from benchmarks.peers.onnxruntime_int8 import convolutions_in_integers

    kinds = ["QLinearConv", "Conv", "FusedConv", "QLinearConv", "ConvTranspose", "QLinearAdd"]
    graph = SimpleNamespace(node=[SimpleNamespace(op_type=kind) for kind in kinds])
    assert convolutions_in_integers(SimpleNamespace(graph=graph)) == "2 of 5"


def test_integer_convolutions_are_those_of_the_runtime_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))  # it need not be there
    from benchmarks.peers.openvino_int8 import convolutions_in_integers

    def fact(text: str) -> SimpleNamespace:
        return SimpleNamespace(astype=lambda _: text)

    kinds = [("Convolution", "u8"), ("Convolution", "f32"), ("Deconvolution", "i8"), ("Add", "u8")]
    operations = [
        SimpleNamespace(
            get_rt_info=lambda kind=kind, precision=precision: {
                "layerType": fact(kind), "runtimePrecision": fact(precision)
            }
        )
        for kind, precision in kinds
    ]  # fmt: skip
    model = SimpleNamespace(get_ordered_ops=lambda: operations)
    assert convolutions_in_integers(model) == "2 of 3"
