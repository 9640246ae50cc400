"""What each call loses, as bars in the order of the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxquant.display.figures import Bar, Bars
from fxquant.reporting.rows import Row

_SERIES = (("weights", "weight_sqnr"), ("inputs", "input_sqnr"), ("output", "output_sqnr"))


def noise_percent(decibels: float) -> float | None:
    """Return what noise is of the signal, root mean squares, in percent; None of NaN.

    >>> noise_percent(40.0), noise_percent(float("inf"))
    (1.0, 0.0)
    """
    return None if math.isnan(decibels) else 100 * 10 ** (-decibels / 20)


def drawn_losses(rows: Sequence[Row]) -> Bars:
    """Return the root mean square of what each call loses, as a share of the tensor's own."""
    series = [
        (title, field)
        for title, field in _SERIES
        if any(not math.isnan(getattr(row, field)) for row in rows)
    ]
    bars = tuple(
        Bar(
            row.name,
            tuple(noise_percent(getattr(row, field)) for _, field in series),
            _details(row),
        )
        for row in rows
    )
    note = "Noise against signal, root mean squares, call by call: 1 % is 40 dB, 10 % is 20 dB."
    return Bars("What each call loses", tuple(title for title, _ in series), bars, "{:.3g} %", note)


def _details(row: Row) -> str:
    facts = [
        row.kind,
        row.weights and f"weights {row.weights}",
        row.inputs and f"inputs {row.inputs}",
    ]
    return "; ".join(fact for fact in (*facts, *row.remarks) if fact)
