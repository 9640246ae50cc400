"""A result as one page: one file, to be read without a network, without JavaScript, on paper.

    sections (title, sentences, tables, figures) ─▶ HTML, with page.css and page.js inside

Everything that comes from a model (names, reasons, titles) is escaped; and should that fail, the
page's own policy lets no script run but page.js, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from fxquant.display.figures import Bars, Figure, Graph, Histogram, Points, Shares, Tiles
from fxquant.display.page_charts import bars_html, points_html, shares_html, tiles_html
from fxquant.display.page_graph import graph_html
from fxquant.display.page_histograms import histograms_html
from fxquant.display.page_table import RowIds, table_html, text_html
from fxquant.display.table import Table


@dataclass(frozen=True)
class Section:
    """One result on a page: its own, or one that it holds."""

    title: str
    heads: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()


def as_page(sections: Sequence[Section]) -> str:
    """Return the file's text: the first section's title is the page's.

    >>> "a &lt; b</title>" in as_page([Section("a < b", [], [])])
    True
    """
    style, script = _own("page.css"), _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(_section(section, number) for number, section in enumerate(sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(sections[0].title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _own(name: str) -> str:
    return resources.files("fxquant.display").joinpath(name).read_text(encoding="utf-8")


def _section(section: Section, number: int) -> str:
    tables = [table for table in section.tables if table.rows]
    ids = RowIds.of(tables[0] if tables else None, f"r{number}")
    first, second = ("h1", "h2") if number == 0 else ("h2", "h3")
    lead = "".join(
        f'<p class="{"said" if place else "lead"}">{text_html(head)}</p>'
        for place, head in enumerate(section.heads)
    )
    histograms = [each for each in section.figures if isinstance(each, Histogram)]
    drawn = [_drawn(each, ids, second) for each in section.figures]
    shares = [shares_html(each, second) for each in section.figures if isinstance(each, Shares)]
    charts = [html for html, is_above in drawn if is_above]
    if shares:
        charts.insert(1, f'<div class="pairs">{"".join(shares)}</div>')
    below = [html for html, is_above in drawn if not is_above]
    shown = [
        table_html(table, f"r{number}t{place}", ids if place == 0 else None, second)
        for place, table in enumerate(tables)
    ]
    blocks = [*charts, *shown[:1], *below, histograms_html(histograms, ids, second), *shown[1:]]
    inside = "\n".join(each for each in blocks if each)
    title = escape(section.title)
    return (
        f'<section class="result" aria-label="{title}">\n<header><{first}>{title}</{first}>'
        f"{lead}</header>\n{inside}\n</section>"
    )


def _drawn(figure: Figure, ids: RowIds, heading: str) -> tuple[str, bool]:
    """Return a figure, and whether it stands above the main table; "" for those in grids."""
    if isinstance(figure, Tiles):
        return tiles_html(figure), True
    if isinstance(figure, Bars):
        return bars_html(figure, ids, heading), True
    if isinstance(figure, Points):
        return points_html(figure, ids, heading), True
    if isinstance(figure, Graph):
        return graph_html(figure, ids, heading), False
    return "", False
