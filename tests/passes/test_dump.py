"""Each pass writes its graph to a file, from 1 in each run, only where that is asked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import fx, nn

import fxquant
from fxquant import Pipeline, StorageError
from fxquant.passes import DropIdentities, FoldBatchNorm, MarkFusedRelu

RUN = "import fxquant; from torch import nn; fxquant.Pipeline({})(fxquant.trace(nn.ReLU()))"


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_dumps_the_graph_after_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made" / "here"
    monkeypatch.setenv("FXQUANT_DUMP", str(folder))
    gm = fxquant.trace(model())
    Pipeline(DropIdentities(), Pipeline(FoldBatchNorm()), MarkFusedRelu())(gm)
    files = sorted(folder.glob("*.txt"))
    assert [file.name for file in files] == [
        "001_DropIdentities.txt",
        "002_FoldBatchNorm.txt",
        "003_MarkFusedRelu.txt",
    ]
    assert re.findall("BatchNorm2d", files[0].read_text())
    assert files[-1].read_text() == fxquant.text(gm)


def test_a_dump_that_cannot_be_written_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"^DropIdentities: FXQUANT_DUMP=.* or unset it$"):
        DropIdentities()(fxquant.trace(model()))


def test_dumps_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXQUANT_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    DropIdentities()(fxquant.trace(model()))
    assert list(tmp_path.iterdir()) == []


def test_each_run_begins_at_1_and_removes_what_the_one_before_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path))
    (tmp_path / "001_mine.txt").touch()
    for passes in ("lambda gm: None, lambda gm: None, lambda gm: None", "lambda gm: None"):
        subprocess.run([sys.executable, "-c", RUN.format(passes)], check=True)
        numbers = [int(file.name[:3]) for file in tmp_path.glob("*lambda*.txt")]
        assert sorted(numbers) == list(range(1, passes.count("lambda") + 1))
    assert (tmp_path / "001_mine.txt").exists()


def test_an_emptied_folder_begins_at_1_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path))
    for _ in range(2):
        DropIdentities()(fxquant.trace(model()))
        assert [file.name for file in tmp_path.glob("*.txt")] == ["001_DropIdentities.txt"]
        for file in tmp_path.iterdir():
            file.unlink()


def test_somebody_elses_list_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path))
    (tmp_path / ".dumped.json").write_text("[]")
    DropIdentities()(fxquant.trace(model()))
    assert [file.name for file in tmp_path.glob("*.txt")] == ["001_DropIdentities.txt"]


def test_a_name_becomes_one_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(gm: fx.GraphModule) -> None: ...

    change.__name__ = "a/b <c>"
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path))
    Pipeline(change)(fxquant.trace(model()))
    assert [file.name for file in tmp_path.glob("*.txt")] == ["001_a_b_c.txt"]
