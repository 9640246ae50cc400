import math
import re

import pytest

from fxquant.display.figures import Bar, Bars, Point, Points, Share, Shares, Stack, Tile, Tiles
from fxquant.display.page_charts import bars_html, points_html, shares_html, tiles_html
from fxquant.display.page_table import RowIds

IDS = RowIds({"a": "r-0"})


def heights(html: str) -> list[str]:
    return re.findall(r"--h:([\d.%]+)", html)


def test_each_series_has_its_own_scale_and_what_is_not_known_no_bar() -> None:
    bars = (Bar("a", (1.0, 30.0)), Bar("b", (4.0, None)))
    html = bars_html(Bars("Lost", ("weights", "inputs"), bars, "{:.1f} %"), IDS, "h2")
    assert heights(html) == ["25.0%", "100.0%", "100.0%", "0"]
    assert "up to 4.0\xa0%" in html
    assert "inputs not known" in html


def test_a_bar_leads_to_its_row_if_there_is_one() -> None:
    html = bars_html(Bars("", ("x",), (Bar("a", (1.0,)), Bar("b", (1.0,)))), IDS, "h2")
    assert re.findall(r'<a class="col"([^>]*?) data-row="(.*?)"', html) == [
        (' href="#r-0"', "r-0"),
        (' tabindex="0"', ""),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_a_bar_stays_within_its_column(value: float) -> None:
    html = bars_html(Bars("", ("x",), (Bar("a", (2.0,)), Bar("b", (value,)))), IDS, "h2")
    assert heights(html)[1] in ("0", "0.0%", "100.0%")


def test_an_addition_between_two_layers_of_a_block_belongs_to_it() -> None:
    names = ("conv1", "layer1.0", "add", "layer1.1", "add_1", "fc")
    html = bars_html(Bars("", ("x",), tuple(Bar(each, (1.0,)) for each in names)), IDS, "h2")
    assert re.findall(r'--g:(\d)" title="(\w+)"', html) == [
        ("1", "conv1"), ("3", "layer1"), ("1", "add_1"), ("1", "fc"),
    ]  # fmt: skip


def test_stacks_share_one_scale_and_empty_parts_are_left_out() -> None:
    before = Stack("before", (Share("float", 8.0, "8 MB"),))
    after = Stack("after", (Share("packed", 1.5, "1.5 MB"), Share("scales", 0.0, "0")))
    html = shares_html(Shares("Bytes", (before, after)), "h2")
    assert re.findall(r"--w:([\d.]+)", html) == ["100.00", "18.75"]
    assert "scales" not in html


def test_shares_of_nothing_are_drawn() -> None:
    assert "nan" not in shares_html(Shares("", (Stack("", ()),)), "h2")


def test_points_are_numbered_in_their_order_and_the_chosen_one_stands_out() -> None:
    points = (Point("a", 1.0, 60.0), Point("b", 2.0, 70.0, "two", is_chosen=True))
    html = points_html(Points("Rungs", "s", "score", points, (("float", 71.0),)), IDS, "h2")
    assert re.findall(r">(\d+)</text></g>", html) == ["1", "2"]
    assert html.count("chosen") == 2  # the dot, and its line in the list
    assert "score, against s; dashed: float 71" in html
    assert '<a href="#r-0">a</a>' in html


def test_a_wide_axis_is_logarithmic() -> None:
    points = (Point("a", 1.0, 60.0), Point("b", 100.0, 70.0))
    html = points_html(Points("", "s", "score", points), IDS, "h2")
    assert "score, against s (logarithmic)" in html
    assert re.findall(r'class="tick mid" x="([\d.]+)%".*?>([\d.]+)<', html)[3] == ("50.00", "10")


@pytest.mark.parametrize("points", [(), (Point("a", 0.0, 1.0),), (Point("a", 0.0, 1.0),) * 2])
def test_one_point_or_none_is_drawn(points: tuple[Point, ...]) -> None:
    html = points_html(Points("", "s", "score", points), IDS, "h2")
    assert "nan" not in html
    assert html.count("<circle") == len(points)


@pytest.mark.parametrize("span", [1e-6, 0.3, 1.0, 8.5, 99.0, 1e7])
def test_an_axis_has_a_few_round_numbers(span: float) -> None:
    points = (Point("a", 0.0, 5.0), Point("b", 1.0, 5.0 + span))
    html = points_html(Points("", "s", "score", points), IDS, "h2")
    assert 1 <= html.count('class="grid"') <= 6


def test_tiles_have_a_note_where_there_is_one() -> None:
    html = tiles_html(Tiles((Tile("Layers", "3 of 3"), Tile("Bytes", "5.9 MB", "a.b"))))
    assert html.count("<dd>") == 2
    assert '<dd>5.9\xa0MB</dd><dd class="note">a.<wbr>b</dd>' in html
