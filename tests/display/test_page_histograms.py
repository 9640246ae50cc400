import re
from dataclasses import replace

import pytest

from fxquant.display.figures import Histogram
from fxquant.display.page_histograms import histograms_html, resampled
from fxquant.display.page_table import RowIds

SEEN = Histogram("conv1", "inputs", (0.0, 1.0, 2.0, 3.0, 4.0), (4, 4, 1, 1), 0.0, 2.0, 8)
NO_IDS = RowIds({})


def drawn(histogram: Histogram) -> str:
    return histograms_html([histogram], NO_IDS, "h2")


def test_what_lies_outside_is_shaded_and_its_share_said() -> None:
    html = drawn(SEEN)
    assert "8 bits · 20 % clipped" in html
    shaded = re.findall(r'<rect class="out" x="([\d.]+)" y="0" width="([\d.]+)"', html)
    assert shaded == [("0", "0.00"), ("32.00", "32.00")]


def test_the_axis_shows_a_range_that_is_wider_than_the_values() -> None:
    html = drawn(replace(SEEN, low=-4.0, high=8.0))
    assert re.findall(r"<span>([^<]*)</span>", html) == ["−4", "8"]
    assert "0 % clipped" in html


def test_integers_have_a_bar_each_and_say_how_many_are_at_the_ends() -> None:
    edges = tuple(number - 0.5 for number in range(-8, 9))
    html = drawn(Histogram("a", "weights", edges, (1, *[2] * 14, 1), bits=4, is_integers=True))
    assert 'viewBox="0 0 16 100"' in html
    assert "4 bits · 6.7 % at the ends" in html
    assert re.findall(r"<span>([^<]*)</span>", html) == ["−8", "7"]


def test_a_peak_does_not_flatten_all_others() -> None:
    edges = tuple(map(float, range(65)))
    html = drawn(Histogram("relu", "inputs", edges, (1_000_000, 4, *[1] * 62)))
    heights = [float(height) for height in re.findall(r"V([\d.]+)H", html)]
    assert min(heights) == 0  # the peak goes on above
    assert sorted(set(heights))[1] == 52  # 100 - 96 / 2


def test_what_values_are_rounded_to_is_a_line() -> None:
    assert drawn(SEEN).count("<path") == 1
    html = drawn(replace(SEEN, rounded=(5, 5, 0, 0)))
    assert html.count('<path class="rounded"') == 1
    assert "The line is what values are rounded to." in html


@pytest.mark.parametrize(
    "histogram",
    [
        Histogram("empty", "weights", (0.0, 1.0), (0,)),
        Histogram("one value", "weights", (2.0, 2.0), (7,)),
        Histogram("one value, range", "weights", (2.0, 2.0), (7,), 2.0, 2.0, 8),
        Histogram("no bins", "weights", (2.0,), ()),
    ],
    ids=lambda histogram: histogram.name,
)
def test_what_has_no_width_is_drawn(histogram: Histogram) -> None:
    assert "nan" not in drawn(histogram)


def test_counts_keep_their_sum_in_other_bins() -> None:
    edges, counts = (-1.0, 0.0, 0.1, 3.0), (5.0, 7.0, 11.0)
    assert sum(resampled(edges, counts, -1.0, 3.0, 7)) == pytest.approx(23)
    assert sum(resampled(edges, counts, -5.0, 9.0, 64)) == pytest.approx(23)


def test_many_of_one_side_are_folded_up() -> None:
    many = [replace(SEEN, name=f"n{number}") for number in range(40)]
    html = histograms_html([*many, replace(SEEN, side="weights")], NO_IDS, "h2")
    assert re.findall(r"<details( open)?><summary>(\w+)", html) == [
        ("", "inputs"),
        (" open", "weights"),
    ]
    assert histograms_html([], NO_IDS, "h2") == ""
