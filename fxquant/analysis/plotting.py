"""A picture of what costs most, and of what helps."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from fxquant.analysis.ranking import TensorCost
from fxquant.analysis.remedies import Remedy
from fxquant.errors import FxquantError

_MOST = 20
_LONGEST = 60


def draw(
    path: str | os.PathLike[str],
    costs: Sequence[TensorCost],
    remedies: Sequence[Remedy],
    unit: str,
) -> None:
    """Write bars of the costliest tensors, and of what each remedy won, "points" or "dB".

    Raises:
        FxquantError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise FxquantError("plot: matplotlib is not installed: pip install fxquant[plot]")
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    first = costs[:_MOST]
    heights = [max(len(first), 1), max(len(remedies), 1)]
    figure = Figure(figsize=(9, 2 + 0.25 * sum(heights)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=heights)
    above.barh([each.label for each in first], [each.wins or 0.0 for each in first])
    above.set(xlabel="dB of the outputs that more bits would win")
    won = [each.points if unit == "points" else each.decibels for each in remedies]
    titles = [_shortened(each.change.title) for each in remedies]
    below.barh(titles, [each or 0.0 for each in won], color="tab:green")
    below.set(xlabel=f"{unit} that a remedy won")
    for axes in (above, below):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(Path(path).expanduser())


def _shortened(title: str) -> str:
    return title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…"
