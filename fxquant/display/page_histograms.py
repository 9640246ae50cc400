"""Histograms as inline SVG: what lies outside of the range is shaded, and how much that is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from fxquant.display.figures import Histogram
from fxquant.display.page_table import RowIds, breakable

_MOST_BINS = 64
_MOST_OPEN = 36
_TALLEST = 2.0  # times the second: zeros behind a ReLU would flatten all others


def histograms_html(histograms: Sequence[Histogram], ids: RowIds, heading: str) -> str:
    """Return a grid of all; where JavaScript runs, those of a row are shown beside it too."""
    if not histograms:
        return ""
    sides = list(dict.fromkeys(each.side for each in histograms))
    grids = []
    for side in sides:
        of_side = [each for each in histograms if each.side == side]
        inside = "\n".join(_histogram(each, ids) for each in of_side)
        is_open = " open" if len(of_side) <= _MOST_OPEN else ""
        grids.append(
            f"<details{is_open}><summary>{escape(side)} <small>{len(of_side)}</small></summary>"
            f'<div class="grid">{inside}</div></details>'
        )
    note = (
        "Heights are square roots of counts, so that tails are seen; a bar that reaches the top "
        "goes on. What lies outside of the range is shaded."
    )
    if any(each.rounded for each in histograms):
        note += " The line is what values are rounded to."
    return (
        f'<div class="histograms block"><{heading}>Histograms</{heading}>'
        f'<p class="note">{note}</p>{"".join(grids)}</div>'
    )


def _histogram(histogram: Histogram, ids: RowIds) -> str:
    low, high = _ends(histogram)
    inset = 0.5 if histogram.is_integers else 0.0
    facts = escape(" · ".join(_facts(histogram)))
    row = ids.by_name.get(histogram.name, "")
    return (
        f'<figure class="hist" data-row="{row}"><figcaption>'
        f"<b>{ids.link(histogram.name, breakable(histogram.name))}</b>"
        f'<small><span class="side">{escape(histogram.side)} · </span>{facts}</small>'
        f"</figcaption>{_svg(histogram, low, high)}"
        f'<div class="ends"><span>{_number(low + inset)}</span>'
        f"<span>{_number(high - inset)}</span></div></figure>"
    )


def _facts(histogram: Histogram) -> list[str]:
    facts = [] if histogram.bits is None else [f"{histogram.bits} bits"]
    if histogram.is_integers:
        ends = sum(histogram.counts[:1]) + sum(histogram.counts[1:][-1:])
        facts.append(f"{_percent(ends / (sum(histogram.counts) or 1))} at the ends")
    elif histogram.low is not None or histogram.high is not None:
        facts.append(f"{_percent(histogram.clipped)} clipped")
    return facts + [histogram.note] * bool(histogram.note)


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %" if share >= 1e-4 or share == 0 else "< 0.01 %"


def _ends(histogram: Histogram) -> tuple[float, float]:
    """Return what the axis shows: the values, and the range, which may be wider."""
    low = min(histogram.edges[0], *([] if histogram.low is None else [histogram.low]), float("inf"))
    high = max(
        histogram.edges[-1], *([] if histogram.high is None else [histogram.high]), -float("inf")
    )
    return low, high if high > low else low + 1.0


def _svg(histogram: Histogram, low: float, high: float) -> str:
    num_bins = min(_MOST_BINS, len(histogram.counts)) if histogram.is_integers else _MOST_BINS
    heights = _heights(histogram.edges, histogram.counts, low, high, num_bins)
    second, greatest = sorted([0.0, *heights])[-2:]
    top = min(greatest, _TALLEST * second) or greatest or 1.0
    paths = f'<path class="counts" d="M0 100{_steps(heights, top)}V100Z"/>'
    if histogram.rounded:
        rounded = _heights(histogram.edges, histogram.rounded, low, high, num_bins)
        paths += f'<path class="rounded" d="M0 100{_steps(rounded, top)}V100"/>'
    across = num_bins / (high - low)
    marks = ""
    if histogram.low is not None:
        at = across * (histogram.low - low)
        marks += f'<rect class="out" x="0" y="0" width="{at:.2f}" height="100"/>{_clip(at)}'
    if histogram.high is not None:
        at = across * (histogram.high - low)
        rest = num_bins - at
        marks += (
            f'<rect class="out" x="{at:.2f}" y="0" width="{rest:.2f}" height="100"/>{_clip(at)}'
        )
    said = f"{histogram.name}, {histogram.side}: from {_number(low)} to {_number(high)}"
    return (
        f'<svg viewBox="0 0 {num_bins} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}">{paths}{marks}</svg>'
    )


def _heights(
    edges: Sequence[float], counts: Sequence[float], low: float, high: float, num_bins: int
) -> list[float]:
    return [math.sqrt(each) for each in resampled(edges, counts, low, high, num_bins)]


def _steps(heights: Sequence[float], top: float) -> str:
    return "".join(
        f"V{100 - min(100.0, 96 * height / top):.1f}H{number + 1}"
        for number, height in enumerate(heights)
    )


def _clip(at: float) -> str:
    return f'<line class="clip" x1="{at:.2f}" x2="{at:.2f}" y1="0" y2="100"/>'


def resampled(
    edges: Sequence[float], counts: Sequence[float], low: float, high: float, num_bins: int
) -> list[float]:
    """Return the counts in bins of one width from `low` to `high`: each is spread over its own.

    >>> resampled((0.0, 1.0, 3.0), (2, 4), 0.0, 3.0, 3)
    [2.0, 2.0, 2.0]
    """
    width = (high - low) / num_bins
    found = [0.0] * num_bins
    bins = zip(edges, edges[1:], counts, strict=False)
    for start, end, count in bins:
        if not count:
            continue
        first = min(num_bins - 1, max(0, int((start - low) / width)))
        if end <= start:
            found[first] += count
            continue
        last = min(num_bins - 1, max(first, int((end - low) / width)))
        for number in range(first, last + 1):
            left, right = low + number * width, low + (number + 1) * width
            overlap = min(end, right) - max(start, left)
            found[number] += count * max(0.0, overlap) / (end - start)
    return found


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
