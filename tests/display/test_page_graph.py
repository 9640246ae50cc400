import re

from fxquant.display.figures import Graph, Line, Note
from fxquant.display.page_graph import aligned, graph_html
from fxquant.display.page_table import RowIds

CONV = Line("conv", "conv = self.conv(x)  # Conv2d")
BN = Line("bn", "bn = self.bn(conv)", (Note("folded", "folded into conv"),))
QUANTIZED = Line("conv", "conv = self.conv(q)  # Conv2d", (Note("folded", "folded bn"),), "conv")
END = Line("output", "return conv")
IDS = RowIds({"conv": "r-0"})


def kinds(html: str) -> list[str]:
    return re.findall(r'class="pair (\w+)"', html)


def test_lines_of_one_node_stand_side_by_side() -> None:
    html = graph_html(Graph("", (Line("q", "q"), QUANTIZED, END), (CONV, BN, END)), IDS, "h2")
    assert kinds(html) == ["sides", "new", "changed", "gone", "same"]


def test_without_a_graph_before_there_is_one_column() -> None:
    html = graph_html(Graph("", (CONV, QUANTIZED)), IDS, "h2")
    assert kinds(html) == ["same", "changed"]
    assert "before" not in html


def test_a_name_leads_to_its_row() -> None:
    html = graph_html(Graph("", (QUANTIZED,)), IDS, "h2")
    assert (
        '<code><a href="#r-0">conv</a> = self.conv(q)  <span class="what">#\xa0Conv2d</span>'
        in html
    )
    assert '<span class="note folded">folded bn</span>' in html


def test_order_is_kept_on_both_sides() -> None:
    before = [Line(name, "") for name in "abcdef"]
    after = [Line(name, "") for name in "xacyfe"]
    pairs = list(aligned(before, after))
    assert [left.name for left, _ in pairs if left] == list("abcdef")
    assert [right.name for _, right in pairs if right] == list("xacyfe")
    assert all(left.name == right.name for left, right in pairs if left and right)
