import math
import re

import pytest

from fxquant.display.page_table import RowIds, breakable, table_html, text_html
from fxquant.display.table import Column, Table

COLUMNS = (
    Column("name", "call"),
    Column("weights", "weights", usual=True),
    Column("db", "dB", "{:.1f}", is_bar=True),
)


def cells(html: str) -> list[str]:
    return re.findall(r"<td[^>]*>", html)


def test_a_bar_is_as_long_as_its_share_of_the_greatest_finite_value() -> None:
    rows = (("a", None, 10.0), ("b", None, 40.0), ("c", None, math.inf), ("d", None, -3.0))
    html = table_html(Table(COLUMNS, rows), "t", None, "h2")
    assert re.findall(r"--b:([\d.]+)", html) == ["25.0", "100.0", "100.0", "0.0"]


def test_what_is_usual_is_said_once_and_kept_for_the_filter() -> None:
    rows = (("a", "4 bits", 1.0), ("b", "4 bits", 2.0), ("c", "8 bits", 3.0), ("d", None, 4.0))
    html = table_html(Table(COLUMNS, rows), "t", None, "h2")
    assert "Where a row says nothing else: weights 4\xa0bits." in html
    weights = re.findall(r"<td(?: data-v=\"([^\"]*)\")?>([^<]*)</td>", html)
    assert weights == [("4 bits", ""), ("4 bits", ""), ("8 bits", "8\xa0bits"), ("", "–")]


def test_a_column_of_nothing_but_what_is_usual_is_left_out() -> None:
    html = table_html(Table(COLUMNS, (("a", "4 bits", 1.0), ("b", "4 bits", 2.0))), "t", None, "h2")
    assert re.findall(r"<button[^>]*>([^<]*)<", html) == ["call", "dB"]


def test_a_number_sorts_by_its_value_and_not_by_what_is_written() -> None:
    html = table_html(Table(COLUMNS, (("a", None, 31.27),)), "t", None, "h2")
    assert '<td class="num bar" data-v="31.27" style="--b:100.0">31.3</td>' in html


def test_few_rows_have_nothing_to_filter_by() -> None:
    few, many = (Table(COLUMNS, (("a", None, 1.0),) * number) for number in (5, 6))
    assert "search" not in table_html(few, "t", None, "h2")
    assert "search" in table_html(many, "t", None, "h2")


def test_kinds_can_be_chosen_among() -> None:
    columns = (Column("name", "call"), Column("kind", "kind"))
    rows = tuple((f"n{number}", "Linear" if number % 2 else "a<b") for number in range(6))
    html = table_html(Table(columns, rows), "t", None, "h2")
    assert re.findall(r'<option value="([^"]*)">', html) == ["", "Linear", "a&lt;b"]


def test_links_lead_to_the_first_row_of_a_name() -> None:
    ids = RowIds.of(Table(COLUMNS, (("a", None, 1.0), ("b", None, 1.0), ("a", None, 2.0))), "r")
    assert ids.link("a", "A") == '<a href="#r-0">A</a>'
    assert ids.link("z", "Z") == "Z"
    assert ids.attributes(2, "a") == ' id="r-2" data-row="r-0"'


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.b_c/d", "a.<wbr>b_<wbr>c/<wbr>d"),
        ("a..b", "a..<wbr>b"),
        ("<.>", "&lt;.<wbr>&gt;"),
        ("a.&", "a.<wbr>&amp;"),
        ("", ""),
    ],
)
def test_names_break_behind_their_dots(name: str, written: str) -> None:
    assert breakable(name) == written


def test_numbers_keep_their_units() -> None:
    assert text_html("10 dB, 5 MB; 3 % of 4 decibels") == "10\xa0dB, 5\xa0MB; 3\xa0% of 4 decibels"
