"""Signal over noise, in decibels."""

import math

import pytest
import torch

from fxquant.numerics.decibels import decibels, sqnr


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.01, 20.0),
        (0.5, 0.5, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (1e-300, 1e300, -math.inf),
        (1e300, 1e-300, math.inf),
    ],
)
def test_ratios_by_hand(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)


def test_what_is_not_a_number_stays_so() -> None:
    assert math.isnan(decibels(1.0, math.nan))
    assert math.isnan(decibels(math.nan, 1.0))


@pytest.mark.parametrize(
    ("signal", "quantized", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.1], 10 * math.log10(5 / 0.01)),
        ([3.0, 4.0], [0.0, 0.0], 0.0),
        ([1.0], [1.0], math.inf),
        ([0.0, 0.0], [0.0, 0.0], math.inf),
        ([0.0], [1.0], -math.inf),
        ([1e30], [1.1e30], 20.0),  # the squares overflow float32
    ],
)
def test_sqnr_in_decibels(signal: list[float], quantized: list[float], expected: float) -> None:
    measured = sqnr(torch.tensor(signal), torch.tensor(quantized))
    assert measured == pytest.approx(expected, rel=1e-5)
