import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fxquant.display.shown import Listed
from fxquant.display.table import Column, Table
from fxquant.errors import FxquantError


@dataclass(frozen=True, repr=False)
class Losses(Listed):
    rows: tuple[tuple[str, float], ...]

    def heads(self) -> list[str]:
        return [f"{len(self.rows)} layers, and a sentence of some length behind it", "a < b"]

    def tables(self) -> list[Table]:
        columns = (Column("name", "call"), Column("loss", "% of loss", "{:.1f}"))
        return [Table(columns, self.rows), Table(columns, (), title="none")]

    def badness(self) -> Sequence[float | None]:
        return [None if math.isnan(loss) else loss for _, loss in self.rows]


LOSSES = Losses((("conv1", 1.0), ("layer1.0", 30.0), ("layer1.1", math.nan), ("fc, last", 5.25)))


def names(losses: Losses) -> list[str]:
    return [name for name, _ in losses.rows]


def test_worst_are_the_greatest_without_those_that_nothing_tells_of() -> None:
    assert names(LOSSES.worst(2)) == ["layer1.0", "fc, last"]
    assert names(LOSSES.worst()) == ["layer1.0", "fc, last", "conv1"]
    with pytest.raises(FxquantError, match=r"^Losses\.worst: n=0: give a positive number$"):
        LOSSES.worst(0)


def test_sort_puts_rows_without_a_value_last_both_ways() -> None:
    assert names(LOSSES.sort("loss")) == ["conv1", "fc, last", "layer1.0", "layer1.1"]
    assert names(LOSSES.sort("loss", descending=True))[0] == "layer1.0"
    assert names(LOSSES.sort("loss", descending=True))[-1] == "layer1.1"
    assert names(LOSSES.sort("name"))[0] == "conv1"
    with pytest.raises(FxquantError, match="no column 'db': choose one of name, loss"):
        LOSSES.sort("db")


def test_select_takes_globs_and_says_what_names_there_are() -> None:
    assert names(LOSSES.select("layer1.*", "fc*")) == ["layer1.0", "layer1.1", "fc, last"]
    with pytest.raises(FxquantError, match=r"'layer2\.\*' matches none of 4 rows; names start"):
        LOSSES.select("conv1", "layer2.*")


def test_it_prints_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = str(LOSSES).splitlines()
    assert lines[:3] == ["4 layers, and a sentence of some length", "  behind it", "a < b"]
    assert max(map(len, lines)) <= 40
    assert len(LOSSES) == 4


def test_repr_is_the_first_sentence() -> None:
    said = "<Losses: 4 layers, and a sentence of some length behind it>"
    assert repr(LOSSES) == said


def test_csv_has_every_value_whole(tmp_path: Path) -> None:
    text = LOSSES.to_csv(tmp_path / "losses.csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[3] == {"name": "fc, last", "loss": "5.25"}
    assert rows[2]["loss"] == ""
    assert (tmp_path / "losses.csv").read_bytes().decode() == text


def test_json_has_no_nan(tmp_path: Path) -> None:
    LOSSES.to_json(tmp_path / "losses.json")
    known = json.loads((tmp_path / "losses.json").read_text(), parse_constant=pytest.fail)
    assert known["summary"][1] == "a < b"
    assert known["rows"][2] == {"name": "layer1.1", "loss": None}
    assert known["none"] == []


def test_html_below_a_cell_runs_nothing_and_escapes_names() -> None:
    html = LOSSES._repr_html_()
    assert "a &lt; b" in html
    assert "<script" not in html
    assert html.count("<tr>") == 5


def test_pandas_has_a_column_for_each_key() -> None:
    pandas = pytest.importorskip("pandas")
    frame = LOSSES.to_pandas()
    assert list(frame.columns) == ["name", "loss"]
    assert frame["loss"].max() == 30.0
    assert isinstance(frame, pandas.DataFrame)
