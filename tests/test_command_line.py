"""`python -m fxquant` reads files, prints, and says what is wrong in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.command_line import main


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Return the files of one network at 8 and at 4 bits."""
    paths = []
    for bits in (8, 4):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        model = fxquant.quantize(net, [torch.randn(16, 8)], Recipe.aciq(weight_bits=bits))
        paths.append(tmp_path / f"{bits}.fxq")
        fxquant.save(model, paths[-1])
    return str(paths[0]), str(paths[1])


def test_report_is_that_of_the_model(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", files[0]]) == 0
    assert capsys.readouterr().out == f"{fxquant.report(fxquant.load(files[0]))}\n"
    assert main(["report", files[0], "--select", "2", "--json", str(tmp_path / "out.json")]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["name"] == "2"
    assert main(["report", files[0], "--worst", "1", "--csv", str(tmp_path / "out.csv")]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_text_is_the_graph(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", files[0]]) == 0
    assert capsys.readouterr().out == f"{fxquant.text(fxquant.load(files[0]))}\n"


def test_card_is_printed_or_written(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "README.md"
    assert main(["card", files[0], "--title", "T", "--data", "noise", "--out", str(out)]) == 0
    assert out.read_text() == fxquant.card(fxquant.load(files[0]), title="T", data="noise")
    assert main(["card", files[0]]) == 0
    assert capsys.readouterr().out == fxquant.card(fxquant.load(files[0]))


def test_compare_says_what_differs_or_runs_both(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", *files]) == 0
    assert capsys.readouterr().out.startswith("2 of 2 calls are quantized in another way\n")
    assert main(["compare", *files, "--shape", "4,8"]) == 0
    drawn = capsys.readouterr().out
    assert "nodes depart" in drawn
    np.save(tmp_path / "x.npy", torch.randn(4, 8, generator=torch.manual_seed(0)).numpy())
    assert main(["compare", *files, "--inputs", str(tmp_path / "x.npy")]) == 0
    assert capsys.readouterr().out == drawn
    torch.save([1], tmp_path / "x.pt")
    assert main(["compare", *files, "--inputs", str(tmp_path / "x.pt")]) == 1
    assert "x.pt: it holds a list: give a file of one tensor" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.fxq").write_bytes(b"something else")
    for name in ("no.fxq", "missing.fxq"):
        assert main(["report", str(tmp_path / name)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m fxquant report: ")
        assert name in line


def test_files_that_hold_no_tensor_and_shapes_that_are_none_say_so(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("npy", "pt", "safetensors"):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(b"something else")
        assert main(["compare", *files, "--inputs", str(path)]) == 1
        assert f"{path}: it cannot be read as a tensor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", *files, "--shape", "a,b"])
    assert "--shape: 'a,b': give sizes: 8,3,224,224" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(files: tuple[str, str]) -> None:
    command = f"{sys.executable} -m fxquant text {files[0]} | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_it_is_a_module_to_run() -> None:
    command = [sys.executable, "-m", "fxquant", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "{report,text,card,compare}" in run.stdout
