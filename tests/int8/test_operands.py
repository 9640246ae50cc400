"""What a result stands for, and its bounds, in the kernels' own units."""

import math

import pytest
import torch

from fxquant.int8 import kernels
from fxquant.int8.operands import Clamp, Result, Uint8
from fxquant.numerics.affine import AffineNumbers, Grid

BYTE = Grid(0, 255)


@pytest.mark.parametrize(
    ("output", "clamp", "ends"),
    [
        (None, None, (-math.inf, math.inf)),
        (None, (0.0, 6.0), (0.0, 6.0)),
        (AffineNumbers(0.1, 3, BYTE), None, (0, 255)),
        (AffineNumbers(0.1, 3, BYTE), (0.0, math.inf), (3, 255)),
        (AffineNumbers(0.1, 3, BYTE), (0.0, 6.0), (3, 63)),
        (AffineNumbers(0.01, 3, BYTE), (0.0, 6.0), (3, 255)),  # the range ends below 6
        (AffineNumbers(0.1, 3, Grid(0, 15)), (0.0, 6.0), (3, 15)),
        (AffineNumbers(0.1, 255, BYTE), (0.0, 6.0), (255, 255)),  # no value is positive
        (AffineNumbers(2e-38, 3, BYTE), (0.0, 6.0), (3, 255)),  # 6/scale overflows
        (AffineNumbers(4.0, 0, BYTE), (0.0, 6.0), (0, 2)),  # 1.5 → 2, ties to even
    ],
)
def test_the_ends_of_a_result_are_those_of_the_grid_and_of_the_clamp(
    output: AffineNumbers | None, clamp: Clamp, ends: tuple[float, float]
) -> None:
    result = Result.of(output, clamp)
    assert (result.low, result.high) == ends
    known = (None, 0) if output is None else (output.scale, output.zero_point)
    assert (result.scale, result.zero_point) == known
    assert result.dtype == (torch.float32 if output is None else torch.uint8)


def test_a_clamp_before_the_rounding_is_one_behind_it() -> None:
    values = torch.linspace(-3, 9, 10_001)
    for scale in (0.0237, 0.0471, 0.06):
        result = Result.of(AffineNumbers(scale, 20, BYTE), (0.0, 6.0))
        rounded = kernels.quantize(values.clamp(0, 6), scale, 20, 255)
        clamped = kernels.quantize(values, scale, 20, 255).clamp(result.low, result.high)
        assert torch.equal(rounded, clamped)


def test_integers_are_what_dequantize_takes() -> None:
    integers = Uint8.of(torch.tensor([0, 3, 255], dtype=torch.uint8), AffineNumbers(0.5, 3, BYTE))
    assert kernels.dequantize(*integers).tolist() == [-1.5, 0.0, 126.0]
