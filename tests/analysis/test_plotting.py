"""The picture has a bar for each costly tensor, and for each remedy."""

import importlib.util
from pathlib import Path

import pytest

from fxquant.analysis.plotting import draw
from fxquant.errors import FxquantError
from tests.analysis.test_result import made


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib")
def test_writes_a_picture_in_the_format_of_its_ending(tmp_path: Path) -> None:
    found = made()
    found.plot(tmp_path / "costs.svg")
    text = (tmp_path / "costs.svg").read_text()
    assert text.startswith("<?xml")
    draw(tmp_path / "nothing.png", (), (), "points")
    assert (tmp_path / "nothing.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FxquantError, match=r"plot: matplotlib is not installed: pip install fxq"):
        made().plot("costs.png")
