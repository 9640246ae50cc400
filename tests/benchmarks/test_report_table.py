"""The report's table on small data in the real formats, with untrained models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import fxquant
from benchmarks import report_table
from benchmarks.data.drawn_shapes import write_coco, write_voc
from benchmarks.judging import report_subjects, tasks
from benchmarks.judging.tasks import Batches, Inputs
from benchmarks.networks.small_models import PLANS
from benchmarks.networks.small_training import Plan
from benchmarks.report_table import METHODS, main


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLANS:
        plan = Plan(train=10, val=10, epochs=0, batch_size=5, learning_rate=1e-3)
        monkeypatch.setitem(PLANS, name, plan)


def run(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the rows in the file after a run with these arguments."""
    results = folder / "rows.json"
    main([*arguments, "--results", str(results), "--cache", str(folder / "cache")])
    rows: list[dict[str, Any]] = json.loads(results.read_text())["rows"]
    return rows


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("this was to be read back")

    for name in names:
        monkeypatch.setattr(report_subjects.Measurement, name, fail)


@pytest.mark.slow
def test_without_arguments_three_small_models_make_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        METHODS, "AdaRound", lambda settings: fxquant.Recipe.adaround(samples=4, steps=2)
    )
    rows = run(tmp_path)
    methods = ["float", "ACIQ", "ACIQ, every batch", "AdaRound"]
    columns = {
        "small_resnet": ["top-1", "top-5", "agrees"],
        "small_retinanet": ["AP", "AP50", "AP75", "APS", "APM", "APL", "matched"],
        "small_deeplabv3": ["mIoU"],
    }
    assert [(row["model"], row["method"]) for row in rows] == [
        (model, method) for model in columns for method in methods
    ]
    for row in rows:
        assert list(row["figures"]) == columns[row["model"]]
        assert row["seconds"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == list(columns)
    assert printed[1].split() == [
        "method",
        *[name for figures in columns.values() for name in (*figures, "seconds")],
    ]
    assert [line[:17].rstrip() for line in printed[3:7]] == methods


def test_a_detector_that_finds_nothing_has_an_ap_of_0(tmp_path: Path) -> None:
    rows = run(tmp_path, "--model", "small_retinanet", "--methods", "ACIQ")
    for row in rows:
        assert row["figures"]["AP"] == row["figures"]["AP50"] == 0.0
        assert row["figures"]["matched"] is None


def test_a_second_run_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    rows = run(tmp_path, *arguments)
    printed = capsys.readouterr().out
    forbid(monkeypatch, "_quantize", "_evaluate")
    assert run(tmp_path, *arguments) == rows
    assert capsys.readouterr().out == printed


def test_fresh_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    first = run(tmp_path, *arguments)
    again = run(tmp_path, *arguments, "--fresh")
    assert len(again) == len(first) == 2
    assert [row["figures"] for row in again] == [row["figures"] for row in first]
    assert [row["seconds"] for row in again] != [row["seconds"] for row in first]
    forbid(monkeypatch, "_evaluate")
    with pytest.raises(AssertionError):
        run(tmp_path, *arguments, "--fresh")


def test_other_options_make_new_rows_but_for_the_float_model(tmp_path: Path) -> None:
    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    run(tmp_path, *arguments)
    rows = run(tmp_path, *arguments, "--weight-bits", "4")
    assert [row["method"] for row in rows] == ["float", "ACIQ", "ACIQ"]
    rows = run(tmp_path, *arguments, "--calibration", "3")
    assert [row["options"].get("calibration") for row in rows] == [None, 10, 10, 3]
    rows = run(tmp_path, *arguments, "--images", "4")
    assert [row["options"]["images"] for row in rows] == [10, 10, 10, 10, 4, 4]


def test_other_pictures_make_new_rows(tmp_path: Path) -> None:
    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    run(tmp_path, *arguments)
    picture = next(tmp_path.glob("cache/*/val/*/*.JPEG"))
    Image.new("RGB", (9, 9)).save(picture)
    assert len(run(tmp_path, *arguments)) == 4


def test_the_float_models_answers_are_found_again_if_they_are_lost(tmp_path: Path) -> None:
    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    first = run(tmp_path, *arguments)
    answers = next(tmp_path.glob("rows_answers/small_resnet_*.pt"))
    answers.unlink()
    rows = run(tmp_path, *arguments, "--weight-bits", "7")
    assert answers.exists()
    assert rows[:2] == first
    assert rows[2]["figures"]["agrees"] >= 50


def test_an_interrupted_run_keeps_the_finished_rows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("--model", "small_resnet", "--methods", "ACIQ")
    with monkeypatch.context() as patched:
        patched.setattr(fxquant, "convert", interrupt)
        with pytest.raises(SystemExit, match=r"interrupted; finished rows are kept in .*rows.json"):
            run(tmp_path, *arguments)
    assert "float" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["float"]
    assert run(tmp_path, *arguments)[0] == rows[0]


def test_a_classifier_of_torchvision_runs_on_an_imagenet_folder(tmp_path: Path) -> None:
    for number, (wnid, mode) in enumerate([("n05", "L"), ("n02", "CMYK")]):
        (tmp_path / "data" / "val" / wnid).mkdir(parents=True)
        picture = Image.new(mode, (50 + 300 * number, 40))
        picture.save(tmp_path / "data" / "val" / wnid / "1.JPEG")
    (tmp_path / "data" / "wnids.txt").write_text("n00\nn05\nn02\n")
    model = torchvision.models.squeezenet1_1()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    where = ("--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights.pth"))
    rows = run(tmp_path, "--model", "squeezenet1_1", *where, "--methods", "ACIQ")
    assert [row["method"] for row in rows] == ["float", "ACIQ"]
    assert rows[0]["weights"].startswith("weights.pth ")


@pytest.mark.slow
def test_a_segmenter_of_torchvision_runs_on_a_voc_folder(tmp_path: Path) -> None:
    write_voc(tmp_path / "data", train=0, val=2)
    model = torchvision.models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None
    )
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    where = ("--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights.pth"))
    rows = run(tmp_path, "--model", "lraspp_mobilenet_v3_large", *where, "--methods", "ACIQ")
    assert 0 <= rows[1]["figures"]["mIoU"] < 20


@pytest.mark.slow
def test_a_detector_of_torchvision_runs_on_a_coco_folder(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", train=0, val=2)
    model = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None
    )
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    where = ("--data", str(tmp_path / "data"), "--weights", str(tmp_path / "weights.pth"))
    rows = run(tmp_path, "--model", "ssdlite320_mobilenet_v3_large", *where, "--methods", "ACIQ")
    assert rows[1]["figures"]["AP"] is not None
    assert rows[1]["options"]["batch_size"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet50"], "resnet50: give --data FOLDER; data is drawn for small_resnet"),
        (["--data", "x"], "--data and --weights go with a --model of torchvision"),
        (["--model", "small_resnet", "--weights", "x"], "go with a --model of torchvision"),
        (["--model", "resnet51", "--data", "x"], "resnet51: torchvision has no classifier"),
        (["--model", "resnet18", "--data", "nowhere"], "nowhere: there is no such folder"),
        (
            ["--model", "resnet18", "--data", "x", "--weights", "nowhere.pth"],
            "nowhere.pth: there is no such file",
        ),
        (["--images", "0"], "--images 0: give a number of at least 1"),
        (["--model", "small_resnet", "--weight-bits", "9"], "bits=9: choose 2 to 8"),
    ],
)
def test_arguments_that_cannot_be_meant_are_an_error(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *arguments)
    assert not (tmp_path / "rows.json").exists()


class Pictures:
    """Pictures of three sizes in a row."""

    sides = (9, 9, 7, 9, 9)

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (self.sides[index], 5)), index

    def files(self) -> Iterator[Path]:
        return iter(())


@pytest.mark.parametrize("workers", [0, 1])
def test_only_images_of_one_size_come_in_one_tensor(workers: int) -> None:
    inputs = Inputs(Pictures(), range(5), lambda image: torch.from_numpy(np.array(image)))
    batches = list(Batches(inputs, "", as_lists=False, batch_size=4, workers=workers))
    assert [targets for _, targets in batches] == [[0, 1], [2], [3], [4]]
    assert [tuple(images.shape) for images, _ in batches][:2] == [(2, 5, 9, 3), (1, 5, 7, 3)]
    lists = list(Batches(inputs, "", as_lists=True, batch_size=4))
    assert [len(images) for images, _ in lists] == [4, 1]


def test_reading_images_draws_no_random_numbers() -> None:
    inputs = Inputs(Pictures(), range(5), lambda image: torch.zeros(3, 5, 5))
    before = torch.random.get_rng_state()
    list(Batches(inputs, "", as_lists=False, batch_size=4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_reports_numbers_of_images_are_the_defaults() -> None:
    numbers = {kind: (task.calibration, task.samples) for kind, task in tasks.TASKS.items()}
    assert numbers == {"classifier": (128, 128), "detector": (1280, 10), "segmenter": (32, 32)}
    assert set(report_table.DEFAULT_METHODS) <= METHODS.keys()
