"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def test_the_example_prints_what_the_readme_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(blocks("python")[0], {})
    shown = blocks("")[0]
    assert re.sub(r"\d+\.?\d*", "#", printed.getvalue()) == re.sub(r"\d+\.?\d*", "#", shown)


def test_the_adaround_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(blocks("python")[0] + blocks("python")[1], names)
    assert "adaround" in names["fxquant"].text(names["quantized"])
    assert len(list((tmp_path / "run").glob("*.pt"))) == 2


def test_the_examples_of_mixed_precision_and_of_the_search_run() -> None:
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("".join(blocks("python")[number] for number in (0, 2, 3)), names)
    assert names["allocation"].bytes <= 150_000
    assert "drop (≤ 0.5)" in printed.getvalue()
    assert names["found"].attempts[0].rung.name == "nearest, min-max"


def test_the_detector_example_lists_the_regions_that_the_readme_shows() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("import torch, fxquant\n" + blocks("python")[4], {})
    assert blocks("text")[0] in printed.getvalue()


def test_the_deployment_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("import torch, fxquant\n" + blocks("python")[5], {})
    assert "Int8Conv" in printed.getvalue()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resnet18.fxq", "resnet18.onnx"]


def test_the_example_pass_passes_its_test() -> None:
    names: dict[str, object] = {}
    exec(blocks("python")[6] + blocks("python")[7], names)
    names["test_fuse_silu"]()  # type: ignore[operator]


def test_every_file_is_in_the_map() -> None:
    for path in (ROOT / "fxquant").glob("[a-z]*.py"):
        assert f"`fxquant/{path.name}`" in README or f"`{path.name}`" in README, path.name


def test_every_command_names_a_script_that_exists() -> None:
    figures = (ROOT / "benchmarks" / "README.md").read_text()
    commands = re.findall(r"-m\s+benchmarks\.(\w+)", README + figures)
    assert len(set(commands)) > 5
    for name in commands:
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
