import math

import pytest

from fxquant.display.table import Column, Table

COLUMNS = (
    Column("name", "call", folds=True),
    Column("kind", "kind", spared=1),
    Column("weights", "weights", folds=True, usual=True),
    Column("scale", "scale", "{:.3g}", spared=2),
    Column("db", "dB", "{:.1f}"),
    Column("notes", "notes", folds=True),
)
ROWS = (
    ("layer1.conv1", "Conv2d", "4 bits aciq", 0.0123, 21.04, None),
    ("layer1.conv2", "Conv2d", "4 bits aciq", 0.5, 19.5, "not folded: its result is read twice"),
    ("fc", "Linear", "8 bits minmax", 0.25, 40.0, None),
    ("add", "add", None, math.nan, math.nan, None),
)


def test_what_most_rows_have_is_said_once_above() -> None:
    lines = Table(COLUMNS, ROWS).text(200).splitlines()
    assert lines[0] == "weights: 4 bits aciq, where a row says nothing else"
    assert lines[1].split() == ["call", "kind", "weights", "scale", "dB", "notes"]
    assert lines[3].split() == ["layer1.conv1", "Conv2d", "0.0123", "21.0"]
    assert lines[5].split() == ["fc", "Linear", "8", "bits", "minmax", "0.25", "40.0"]
    assert lines[6].split() == ["add", "add", "–"]


def test_a_column_in_which_all_rows_have_the_usual_is_left_out() -> None:
    lines = Table(COLUMNS, ROWS[:2]).text(200).splitlines()
    assert lines[0] == "weights: 4 bits aciq, where a row says nothing else"
    assert lines[1].split() == ["call", "kind", "scale", "dB", "notes"]


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_no_line_is_wider_than_asked(width: int) -> None:
    text = Table(COLUMNS, ROWS, title="what each call lost").text(width)
    assert max(map(len, text.splitlines())) <= width
    assert "".join(text.split()).count("layer1.conv") == 2


def test_columns_that_can_be_spared_are_left_out_greatest_number_first() -> None:
    table = Table(COLUMNS, ROWS)
    assert "not shown" not in table.text(120)
    assert table.text(72).endswith("(not shown, for want of room: scale)")
    assert table.text(50).endswith("(not shown, for want of room: kind, scale)")


def test_names_break_behind_dots() -> None:
    names = Table((Column("n", "call", folds=True),), (("features.denseblock.layer",),))
    assert names.text(20).splitlines()[2:] == ["features.denseblock.", "layer"]


def test_nan_becomes_none_and_infinity_stays() -> None:
    table = Table((Column("a", "a"), Column("b", "b")), ((math.nan, math.inf),))
    assert table.records() == [{"a": None, "b": math.inf}]


def test_columns_without_a_value_are_not_shown_but_are_in_files() -> None:
    table = Table((Column("a", "a"), Column("b", "b")), ((1, None), (2, math.nan)))
    assert table.text(80).splitlines()[0].split() == ["a"]
    assert table.records()[0] == {"a": 1, "b": None}


def test_a_table_without_rows_is_no_text() -> None:
    assert Table((Column("a", "a"),), ()).text(80) == ""
