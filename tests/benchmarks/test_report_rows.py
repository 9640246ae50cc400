import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judging.report_rows import Rows, table


def row(method: str = "float", model: str = "net", **figures: float | None) -> dict[str, Any]:
    key = {"model": model, "weights": "w", "data": "d", "method": method, "options": {"images": 5}}
    return {**key, "figures": figures, "seconds": 1.25}


def test_a_row_is_found_by_its_key_alone(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "results" / "rows.json")
    rows.add(row(top1=50.0))
    assert Rows(rows.path).find(row()) == row(top1=50.0)
    assert rows.find(row("ACIQ")) is None
    assert rows.find({**row(), "options": {"images": 6}}) is None


def test_a_row_takes_the_place_of_one_of_the_same_key(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json")
    rows.add(row(top1=50.0))
    rows.add(row("ACIQ", top1=49.0))
    rows.add(row(top1=51.0))
    assert [each["figures"]["top1"] for each in json.loads(rows.path.read_text())["rows"]] == [
        49.0,
        51.0,
    ]


def test_writing_that_is_cut_off_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(tmp_path / "rows.json")
    rows.add(row(top1=50.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rows.add(row("ACIQ"))
    assert Rows(rows.path).find(row()) == row(top1=50.0)
    assert rows.find(row("ACIQ")) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": [{"model": "net"}]}'])
def test_a_file_of_something_else_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(SystemExit, match=r"rows.json: not rows of this table .*--results FILE"):
        Rows(tmp_path / "rows.json")


def test_the_table_has_a_line_for_each_method_and_the_models_side_by_side() -> None:
    rows = [
        row("float", "one", top1=76.13),
        row("float", "other", AP=36.4, APL=None),
        row("ACIQ", "one", top1=76.05),
    ]
    assert table(rows) == "\n".join(
        [
            "          one                other",
            "method    top1    seconds    AP       APL    seconds",
            "--------  ------  ---------  -------  -----  ---------",
            "float     76.13   1.2        36.40    –      1.2",
            "ACIQ      76.05   1.2",
        ]
    )
