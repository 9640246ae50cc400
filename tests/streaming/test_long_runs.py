"""Bars are shown where they are asked for, and folders lie inside of each other."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from fxquant.streaming.long_runs import Run, UnitsBar, bar


class Terminal:
    """A terminal of 80 columns, to which the standard error goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._file = os.fdopen(writing, "w", encoding="utf-8")
        monkeypatch.setattr(sys, "stderr", self._file)

    def shown(self) -> str:
        """Return all that was written; nothing more can be."""
        self._file.flush()
        read = b""
        while select.select([self._reading], [], [], 0.1)[0]:
            read += os.read(self._reading, 1 << 16)
        self._file.close()
        os.close(self._reading)
        return read.decode()

    def lines(self) -> list[str]:
        return [line for line in re.split(r"[\r\n]+", self.shown()) if line.strip()]


def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for name in [name for name in sys.modules if name.startswith("tqdm.auto")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("progress", [None, False])  # no terminal here
def test_a_quiet_bar_passes_values_on(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(bar("abc", "counting", progress)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("progress", "given"), [(None, {}), (True, {"disable": False})])
def test_unless_a_bar_is_asked_for_tqdms_own_switch_may_hide_it(
    progress: bool | None, given: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    class Recorded(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            seen.append(options)
            super().__init__(*args, **options)

    terminal = Terminal(monkeypatch)
    monkeypatch.setattr("fxquant.streaming.long_runs.tqdm", Recorded)
    assert list(bar("abc", "counting", progress)) == ["a", "b", "c"]
    terminal.shown()
    assert [{k: each[k] for k in each if k == "disable"} for each in seen] == [given]


def test_units_are_counted_and_the_last_line_says_that_all_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(monkeypatch)
    with UnitsBar("AdaRound", "layers", [10, 20], None) as shown:
        for name in ("conv1", "fc"):
            shown.begin(name)
            shown.end()
    lines = [line.rstrip() for line in terminal.lines() if line.strip()]
    assert any(line.startswith("AdaRound 1 of 2 layers:   0%|") for line in lines)
    assert any(line.endswith(", conv1") for line in lines)
    assert lines[-1].startswith("AdaRound 2 of 2 layers: 100%|████████████| 00:00<00:00")


def test_a_long_name_is_cut_in_front_and_no_line_by_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(monkeypatch)
    with UnitsBar("Gram matrix", "layers", [1] * 100, None) as shown:
        shown.begin(f"encoder.{'deep.' * 20}self_attn.out_proj")
        shown.end()
    shown_lines = terminal.lines()
    named = [line.rstrip() for line in shown_lines if "…" in line]
    assert named
    assert all(line.endswith("attn.out_proj") for line in named)
    assert max(map(len, shown_lines)) <= 80


def test_what_is_done_may_be_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(monkeypatch)
    with UnitsBar("search", "recipes", [1] * 10, None) as shown:
        shown.begin("ACIQ")
        shown.end()
        shown.stop()
    assert terminal.lines()[-1].startswith("search 1 of 10 recipes: 100%|")


@pytest.mark.parametrize("progress", [None, False])
def test_units_are_not_shown_where_nobody_looks(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with UnitsBar("AdaRound", "layers", [1], progress) as shown:
        shown.begin("fc")
        shown.end()
        shown.stop()
    assert capsys.readouterr().err == ""


def test_in_a_file_not_every_unit_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with UnitsBar("AdaRound", "layers", [1] * 50, progress=True) as shown:
        for number in range(50):
            shown.begin(str(number))
            shown.end()
    assert capsys.readouterr().err.count("AdaRound") <= 4


def test_a_bar_inside_of_another_goes_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(monkeypatch)
    with UnitsBar("search", "recipes", [1], None) as outer:
        outer.begin("ACIQ")
        with UnitsBar("AdaRound", "layers", [1], None) as inner:
            inner.begin("fc")
            inner.end()
        outer.end()
    text, up = terminal.shown(), "\x1b[A"  # to the line above
    assert "AdaRound 1 of 1 layers" in text
    assert text.count("\n") == text.count(up) + 1


@pytest.mark.filterwarnings("error")
def test_a_notebook_shows_bars_as_text_where_widgets_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_a_notebook(monkeypatch)
    with warnings.catch_warnings(), UnitsBar("AdaRound", "layers", [1], None) as shown:
        shown.begin("fc")
        shown.end()
    assert "AdaRound 1 of 1 layers: 100%" in capsys.readouterr().err


def test_regions_keep_their_parts_in_folders_inside() -> None:
    run = Run("folder", progress=False)
    assert run.inside("head") == Run(Path("folder", "head"), progress=False)
    assert run.inside("") == Run(Path("folder"), progress=False)
    assert Run().inside("head") == Run()
