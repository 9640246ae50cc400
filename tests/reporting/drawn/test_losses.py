"""What each call loses, as bars."""

from dataclasses import replace
from math import nan

import pytest
import torch
from torch import nn

import fxquant
from fxquant.reporting.drawn.losses import drawn_losses
from fxquant.reporting.rows import Row


def rows() -> tuple[Row, ...]:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    return fxquant.report(fxquant.quantize(model, [torch.randn(4, 8)], progress=False)).rows


def test_bars_are_noise_against_signal_in_percent() -> None:
    first, second = rows()
    changed = replace(first, weight_sqnr=40.0), replace(second, weight_sqnr=20.0, input_sqnr=nan)
    bars = drawn_losses(changed)
    assert bars.series == ("weights", "inputs")
    assert [bar.values[0] for bar in bars.bars] == pytest.approx([1.0, 10.0])
    assert bars.bars[1].values[1] is None


def test_a_side_that_was_not_measured_has_no_series() -> None:
    first, second = rows()
    assert drawn_losses([replace(first, output_sqnr=30.0), second]).series == (
        "weights", "inputs", "output",
    )  # fmt: skip
    nothing = replace(first, weight_sqnr=nan, input_sqnr=nan, output_sqnr=nan)
    assert drawn_losses([nothing]).series == ()


def test_details_name_what_was_done_and_refused() -> None:
    first, _ = rows()
    changed = replace(first, weights="4 bits mse", inputs="", remarks=("not folded: it is odd",))
    (bar,) = drawn_losses([changed]).bars
    assert bar.details == "Linear; weights 4 bits mse; not folded: it is odd"
