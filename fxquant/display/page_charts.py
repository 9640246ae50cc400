"""Key numbers, bars a row, stacked bars and points, as HTML and inline SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

from fxquant.display.figures import Bars, Points, Shares, Stack, Tiles
from fxquant.display.page_table import RowIds, breakable, text_html

_MOST_TICKS = 5
_WIDE = 20.0  # from so many times the least on, an axis is logarithmic


def tiles_html(tiles: Tiles) -> str:
    """Return the key numbers, side by side as far as there is room."""
    inside = "".join(
        f"<div><dt>{escape(tile.label)}</dt><dd>{text_html(tile.value)}</dd>"
        + (f'<dd class="note">{breakable(tile.note)}</dd>' if tile.note else "")
        + "</div>"
        for tile in tiles.tiles
    )
    return f'<dl class="tiles">{inside}</dl>'


def bars_html(bars: Bars, ids: RowIds, heading: str) -> str:
    """Return a column a row, in the order of execution, each series on its own scale."""
    tops = [
        max(
            (each.values[place] or 0.0 for each in bars.bars if _is_finite(each.values[place])),
            default=0.0,
        )
        for place in range(len(bars.series))
    ]
    labels = "".join(
        f'<div class="series"><span>{escape(name)}</span>'
        f"<span>up to {text_html(bars.form.format(top))}</span></div>"
        for name, top in zip(bars.series, tops, strict=True)
    )
    columns = []
    for bar in bars.bars:
        said = [
            f"{name} {'not known' if value is None else bars.form.format(value)}"
            for name, value in zip(bars.series, bar.values, strict=True)
        ]
        text = "\n".join([bar.name, *said, *[bar.details] * bool(bar.details)])
        inside = "".join(
            f'<i style="--h:{_percent(value, top)}"{" class=none" * (value is None)}></i>'
            for value, top in zip(bar.values, tops, strict=True)
        )
        row = ids.by_name.get(bar.name, "")
        target = f' href="#{row}"' if row else ' tabindex="0"'
        columns.append(
            f'<a class="col"{target} data-row="{row}" title="{escape(text)}" '
            f'aria-label="{escape(text.replace(chr(10), ", "))}">{inside}</a>'
        )
    note = f'<p class="note">{text_html(bars.note)}</p>' if bars.note else ""
    size = f"--n:{len(bars.bars)};--s:{len(bars.series)}"
    return (
        f'<figure class="bars block"><figcaption><{heading}>{escape(bars.title)}</{heading}>{note}'
        f'</figcaption><div class="scroll"><div class="plot" style="{size}">'
        f'<div class="labels">{labels}</div><div class="cols">{"".join(columns)}</div>'
        f'<div class="groups">{_groups([bar.name for bar in bars.bars])}</div></div></div></figure>'
    )


def _groups(names: Sequence[str]) -> str:
    """Return the first parts of names below those that share them.

    An addition between two layers of a block has no dot in its name, and belongs to the block.
    """
    starts = [name.partition(".")[0] for name in names]
    for place, (name, before, behind) in enumerate(
        zip(names[1:], starts, starts[2:], strict=False), start=1
    ):
        if "." not in name and before == behind:
            starts[place] = before
    groups = [(start, len(list(found))) for start, found in itertools.groupby(starts)]
    return "".join(
        f'<span style="--g:{number}" title="{escape(start)}"><b>{escape(start)}</b></span>'
        for start, number in groups
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(value: float | None, top: float) -> str:
    if value is None or not top > 0 or math.isnan(value):
        return "0"
    return f"{100 * min(1.0, max(0.0, value / top)):.1f}%"


def shares_html(shares: Shares, heading: str) -> str:
    """Return stacked bars, the longest as wide as the page, with what each part is below it."""
    totals = [sum(max(0.0, each.amount) for each in stack.shares) for stack in shares.stacks]
    top = max(totals, default=0.0) or 1.0
    note = f'<p class="note">{text_html(shares.note)}</p>' if shares.note else ""
    inside = "".join(
        _stack(stack, total / top) for stack, total in zip(shares.stacks, totals, strict=True)
    )
    return (
        f'<figure class="shares block"><figcaption><{heading}>{escape(shares.title)}</{heading}>'
        f"{note}</figcaption>{inside}</figure>"
    )


def _stack(stack: Stack, width: float) -> str:
    parts = [each for each in stack.shares if each.amount > 0]
    segments = "".join(
        f'<i class="{each.tone}" style="--a:{each.amount:.6g}" '
        f'title="{escape(f"{each.label} {each.text}")}"></i>'
        for each in parts
    )
    legend = "".join(
        f'<li><i class="{each.tone}"></i>{escape(each.label)} <b>{text_html(each.text)}</b></li>'
        for each in parts
    )
    label = f'<div class="label">{escape(stack.label)}</div>' if stack.label else ""
    size = f"--w:{100 * width:.2f}%"
    return (
        f'<div class="row"><div class="legend">{label}<ul>{legend}</ul></div>'
        f'<div class="stack" style="{size}">{segments}</div></div>'
    )


def points_html(points: Points, ids: RowIds, heading: str) -> str:
    """Return a numbered dot a try, lines across for the levels, and a list of the numbers."""
    xs = [each.x for each in points.points]
    along = _Axis(xs)
    up = _Axis([each.y for each in points.points] + [level for _, level in points.levels])
    marks = []
    for tick in up.ticks():
        y = f"{100 - up.place(tick):.2f}%"
        marks.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        marks.append(f'<text class="tick" x="0" y="{y}" dy="-4">{tick:g}</text>')
    for tick in along.ticks():
        x = f"{along.place(tick):.2f}%"
        marks.append(f'<text class="tick mid" x="{x}" y="100%" dy="-6">{tick:g}</text>')
    for label, level in points.levels:
        y = f"{100 - up.place(level):.2f}%"
        said = escape(f"{label}: {level:g}")
        marks.append(f'<line class="level" x1="0" x2="100%" y1="{y}" y2="{y}">')
        marks.append(f"<title>{said}</title></line>")
    for number, point in enumerate(points.points, start=1):
        x, y = f"{along.place(point.x):.2f}%", f"{100 - up.place(point.y):.2f}%"
        chosen = " chosen" if point.is_chosen else ""
        said = escape(
            f"{point.name}: {points.y_heading} {point.y:g}, {points.x_heading} {point.x:.3g}"
        )
        marks.append(
            f'<g class="point{chosen}"><title>{said}</title><circle cx="{x}" cy="{y}" r="11"/>'
            f'<text x="{x}" y="{y}" dy="4">{number}</text></g>'
        )
    names = "".join(
        f"<li{' class=chosen' * each.is_chosen}>{ids.link(each.name, escape(each.name))}"
        f"{' <small>' + escape(each.details) + '</small>' if each.details else ''}</li>"
        for each in points.points
    )
    axes = f"{points.y_heading}{up.kind}, against {points.x_heading}{along.kind}"
    if points.levels:
        axes += f"; dashed: {', '.join(f'{label} {level:g}' for label, level in points.levels)}"
    return (
        f'<figure class="points block"><figcaption><{heading}>{escape(points.title)}</{heading}>'
        f'<p class="note">{text_html(axes)}</p></figcaption>'
        f'<svg role="img" aria-label="{escape(points.title)}">{"".join(marks)}</svg>'
        f"<ol>{names}</ol></figure>"
    )


class _Axis:
    """Where values stand, in percent of a drawing that leaves room around them."""

    def __init__(self, values: Sequence[float]) -> None:
        least = min(values, default=0.0)
        self._is_logarithmic = least > 0 and max(values) > _WIDE * least
        self.kind = " (logarithmic)" if self._is_logarithmic else ""
        placed = [self._scaled(each) for each in values] or [0.0]
        self._low, self._high = min(placed), max(placed)
        if self._high <= self._low:
            self._low, self._high = self._low - 0.5, self._high + 0.5

    def place(self, value: float) -> float:
        return 8 + 84 * (self._scaled(value) - self._low) / (self._high - self._low)

    def ticks(self) -> list[float]:
        """Return a few round numbers."""
        if self._is_logarithmic:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            round_ones = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [each for each in round_ones if self._low <= math.log10(each) <= self._high]
            return found if len(found) <= 2 * _MOST_TICKS else found[:: len(found) // _MOST_TICKS]
        span = self._high - self._low
        power = 10.0 ** math.floor(math.log10(span))
        step = next(
            power * each for each in (0.2, 0.5, 1, 2, 5) if span <= _MOST_TICKS * power * each
        )
        places = range(math.ceil(self._low / step), math.floor(self._high / step) + 1)
        return [round(place * step, 9) for place in places]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._is_logarithmic else value
