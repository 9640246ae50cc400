"""Bars are shown where they are asked for, and folders lie inside of each other."""

from pathlib import Path

import pytest

from fxquant.streaming.long_runs import Run, bar, bar_of_costs


@pytest.mark.parametrize("progress", [None, False])  # no terminal here
def test_a_quiet_bar_passes_values_on(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(bar("abc", "counting", progress)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_bar_of_costs_ends_at_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with bar_of_costs(30, progress=True) as shown:
        for cost in (10, 20):
            shown.update(cost)
    assert "100%" in capsys.readouterr().err
    with bar_of_costs(30, progress=None) as shown:
        shown.update(30)
    assert capsys.readouterr().err == ""


def test_regions_keep_their_parts_in_folders_inside() -> None:
    run = Run("folder", progress=False)
    assert run.inside("head") == Run(Path("folder", "head"), progress=False)
    assert run.inside("") == Run(Path("folder"), progress=False)
    assert Run().inside("head") == Run()
