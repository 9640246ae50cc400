"""Arrangements compute what the equation says, also where oneDNN's kernel must not be called."""

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.int8.arrangements import (
    Arrangement,
    Shapes,
    direct,
    in_float,
    plain,
    why_not_direct,
)
from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from tests.helpers import needs_int8

WIDE = "16 channels, each with a wide kernel of its own"
PADDING = "a window that sees nothing but padding"
COLUMN = "one channel a group, a stride along the width and one column of results"
DEEP = "one channel a group and a deep kernel over one plane"

# Input, weight, stride, padding, dilation, groups, and why oneDNN's kernel is not called.
Row = tuple[
    tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int
]
FAULTS: dict[str, tuple[Row, str]] = {
    "EEGNet": (((1, 16, 2, 40), (16, 1, 1, 16), (1, 1), (0, 8), (1, 1), 16), WIDE),
    "15×15": (((1, 16, 16, 32), (16, 1, 15, 15), (1, 1), (7, 7), (1, 1), 16), WIDE),
    "wide, without padding": (((2, 16, 64), (16, 1, 15), (1,), (0,), (1,), 16), WIDE),
    "padding beyond the kernel": (
        ((2, 8, 8, 8), (24, 1, 3, 3), (1, 1), (3, 3), (1, 1), 8),
        PADDING,
    ),
    "between two taps": (((1, 4, 9, 1), (8, 2, 3, 2), (1, 1), (1, 1), (1, 2), 2), PADDING),
    "one tap in the padding": (((2, 4, 3), (6, 2, 1), (3,), (1,), (1,), 2), PADDING),
    "spectrogram": (((2, 1, 8, 80), (16, 1, 3, 80), (1, 2), (0, 0), (1, 1), 1), COLUMN),
    "one column": (((2, 3, 7, 4), (6, 1, 2, 4), (1, 3), (1, 0), (1, 1), 3), COLUMN),
    "one plane": (((2, 2, 1, 6, 7), (4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 2), DEEP),
    "one plane, two results": (
        ((1, 3, 1, 5, 6), (6, 1, 2, 2, 2), (1, 2, 1), (1, 0, 1), (1, 1, 1), 3),
        DEEP,
    ),
}
USUAL: dict[str, Row] = {
    "first": ((2, 3, 16, 16), (8, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),
    "dense": ((2, 8, 7, 7), (8, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "dilated": ((1, 4, 9, 9), (4, 4, 3, 3), (1, 1), (2, 2), (2, 2), 1),
    "depthwise": ((2, 16, 9, 9), (16, 1, 5, 5), (2, 2), (2, 2), (1, 1), 16),
    "depthwise, 1-D": ((2, 16, 40), (16, 1, 9), (1,), (4,), (1,), 16),
    "3-D": ((1, 2, 4, 5, 6), (4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 2),
    "depthwise, one column": ((2, 16, 2, 2), (16, 1, 3, 3), (2, 2), (1, 1), (1, 1), 16),
    "depthwise, one plane": (
        ((1, 4, 1, 5, 6), (4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 4)
    ),
    "dilated, one column": ((2, 1, 8, 9), (16, 1, 3, 3), (1, 2), (0, 0), (1, 4), 1),
    "one position": ((1, 4, 3, 3), (4, 4, 3, 3), (2, 2), (0, 0), (1, 1), 1),
}
ROWS = {**{name: row for name, (row, _) in FAULTS.items()}, **USUAL}


def shapes(row: Row, has_zero_point: bool) -> Shapes:
    x, weight, stride, padding, dilation, groups = row
    return Shapes(x, weight, Geometry(stride, padding, dilation, groups), has_zero_point)


@pytest.mark.parametrize("name", FAULTS)
def test_says_why_a_kernel_must_not_be_called(name: str) -> None:
    row, reason = FAULTS[name]
    assert why_not_direct(shapes(row, True)) == reason
    assert why_not_direct(shapes(row, False)) == (None if reason in (WIDE, PADDING) else reason)


def test_finds_the_windows_that_see_nothing_but_padding() -> None:
    ranges = (range(1, 5), range(1, 4), range(1, 4), range(5), range(1, 4))
    for size, width, stride, padding, dilation in itertools.product(*ranges):
        row = ((1, 3, size), (3, 3, width), (stride,), (padding,), (dilation,), 1)
        starts = range(-padding, size + padding - dilation * (width - 1), stride)
        seen = [any(0 <= start + tap * dilation < size for tap in range(width)) for start in starts]
        assert why_not_direct(shapes(row, True)) == (None if all(seen) else PADDING), row


@pytest.mark.parametrize("name", USUAL)
def test_says_nothing_of_usual_layers(name: str) -> None:
    assert why_not_direct(shapes(USUAL[name], True)) is None


@needs_int8
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("zero_point", [0, 7])
@pytest.mark.parametrize("arrangement", [plain, in_float], ids=["plain", "in float"])
def test_computes_what_the_equation_says(
    name: str, zero_point: int, arrangement: Arrangement
) -> None:
    assert_equation(arrangement, ROWS[name], zero_point)


@needs_int8
@pytest.mark.parametrize("name", USUAL)
def test_kernels_compute_usual_layers_as_they_are(name: str) -> None:
    assert_equation(direct, USUAL[name], 7)


def assert_equation(arrangement: Arrangement, row: Row, zero_point: int) -> None:
    """Compare a layer with sums in float64: in float32, in uint8, with an operand added."""
    x_shape, shape, geometry, _ = shapes(row, True)
    dims = len(x_shape) - 2
    x = Uint8(torch.randint(0, 256, x_shape, dtype=torch.uint8), 0.05, zero_point)
    integers = torch.randint(-127, 128, shape, dtype=torch.int8)
    weight = Weight(integers, 0.01 * torch.rand(shape[0]) + 0.01, 20 * torch.randn(shape[0]))
    y = exact(x, weight, geometry)
    in_full = arrangement(x, weight, geometry, "none", Result.of(None), None)
    torch.testing.assert_close(in_full.double(), y, rtol=1e-4, atol=1e-4 * y.abs().max().item())
    assert in_full.movedim(1, -1).is_contiguous()  # channels last: what comes next wants that
    step = y.abs().max().item() / 100
    result = Result(step, 128, 120, 250)
    assert_steps(arrangement(x, weight, geometry, "none", result, None), y, result)
    without_bias = weight._replace(bias=None)
    y = exact(x, without_bias, geometry)
    assert_steps(arrangement(x, without_bias, geometry, "none", result, None), y, result)
    if dims == 2:
        activated = arrangement(x, weight, geometry, "swish", result, None)
        assert_steps(activated, F.silu(exact(x, weight, geometry)), result)
        values = torch.randint(0, 256, y.shape, dtype=torch.uint8)
        total = y + (values.double() - 100) * step
        other = Uint8(values, step, 100)
        added = arrangement(x, without_bias, geometry, "none", result, other)
        assert_steps(added, total, result)


def exact(x: Uint8, weight: Weight, geometry: Geometry) -> Tensor:
    """Return the result in float64."""
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.stride) - 1]
    values, dims = x.values.double() - x.zero_point, len(geometry.stride)
    sums: Tensor = convolve(values, weight.integers.double(), None, *geometry)
    y = sums * (x.scale * weight.scale.double()).reshape(-1, *[1] * dims)
    return y if weight.bias is None else y + weight.bias.double().reshape(-1, *[1] * dims)


def assert_steps(integers: Tensor, y: Tensor, result: Result) -> None:
    assert integers.dtype == torch.uint8
    assert result.scale is not None
    steps = (torch.round(y / result.scale) + result.zero_point).clamp(result.low, result.high)
    assert (integers.double() - steps).abs().max() <= 1


@needs_int8
def test_in_float_takes_no_notice_of_autocast() -> None:
    x = Uint8(torch.randint(0, 256, (2, 8), dtype=torch.uint8), 1.0, 0)
    weight = Weight(torch.randint(-127, 128, (4, 8), dtype=torch.int8), torch.ones(1), None)
    expected = in_float(x, weight, None, "none", Result.of(None), None)
    with torch.autocast("cpu", torch.bfloat16):
        y = in_float(x, weight, None, "none", Result.of(None), None)
    assert torch.equal(y, expected)


ENDLESS = """
import torch
from fxquant.int8 import checked
from fxquant.int8.operands import Geometry, Result, Uint8, Weight

for x, kernel, padding in (
    ((1, 16, 2, 64), (1, 16), (0, 8)),
    ((1, 16, 32, 32), (31, 31), (15, 15)),
    ((1, 16, 64), (15,), (7,)),
):
    x = Uint8(torch.randint(0, 256, x, dtype=torch.uint8), 1.0, 7)
    weight = Weight(torch.ones(16, 1, *kernel, dtype=torch.int8), torch.ones(16), None)
    ones = (1,) * len(kernel)
    checked.conv(x, weight, Geometry(ones, padding, ones, 16), "none", Result.of(None))
"""


@pytest.mark.slow
@needs_int8
def test_what_never_ends_in_a_kernel_ends() -> None:
    """In a process of its own, that a kernel which never ends fails this test alone."""
    subprocess.run([sys.executable, "-c", ENDLESS], check=True, timeout=60)
