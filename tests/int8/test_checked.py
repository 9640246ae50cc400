"""A kernel that is wrong here is found out before its results are used."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fxquant.int8 import checked
from fxquant.int8.arrangements import Arrangement, direct, in_float, plain
from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from tests.helpers import needs_int8

pytestmark = needs_int8
ROUNDED = Result(300.0, 128, 0, 255)
SAME = Geometry((1, 1), (1, 1), (1, 1), 1)


@pytest.fixture(autouse=True)
def _unknown_machine() -> Iterator[None]:
    """Let the process know of no call, before the test and behind it."""
    forget()
    yield
    forget()


def forget() -> None:
    checked._ARRANGEMENTS.clear()
    checked._chosen.cache_clear()


def integers(*shape: int) -> Uint8:
    return Uint8(torch.randint(0, 256, shape, dtype=torch.uint8), 1.0, 7)


def weights(*shape: int) -> Weight:
    values = torch.randint(-127, 128, shape, dtype=torch.int8)
    return Weight(values, torch.ones(shape[0]), torch.randn(shape[0]))


class Faulty:
    """An arrangement that adds `error` steps to the last row of what `right` computes.

    With `wavers` only at every other call.
    """

    def __init__(self, right: Arrangement, error: int = 2, wavers: bool = False) -> None:
        self.right, self.error, self.wavers, self.calls = right, error, wavers, 0

    def __call__(self, *arguments: Any) -> Tensor:
        y = self.right(*arguments)
        self.calls += 1
        if not (self.wavers and self.calls % 2):
            row = y.select(0 if y.dim() == 2 else 2, -1)
            row.add_(self.error if y.dtype is torch.uint8 else 300.0 * self.error)
        return y


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("result", [Result.of(None), ROUNDED], ids=["float32", "uint8"])
@pytest.mark.parametrize("wavers", [False, True])
def test_what_a_wrong_kernel_computes_is_written_plainly(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result: Result,
    wavers: bool,
) -> None:
    monkeypatch.setattr(checked, "direct", faulty := Faulty(direct, wavers=wavers))
    x, weight = integers(2, 4, 5, 6), weights(3, 4, 3, 3)
    expected = plain(x, weight, SAME, "none", result, None)
    assert torch.equal(checked.conv(x, weight, SAME, "none", result), expected)
    assert faulty.calls == 2
    assert warnings_of(caplog) == []


def test_what_is_wrong_either_way_is_computed_in_float_with_one_warning_a_size(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checked, "direct", Faulty(direct))
    monkeypatch.setattr(checked, "plain", Faulty(plain))
    weight = weights(3, 4, 3, 3)
    for width in (6, 7):
        x = integers(2, 4, 5, width)
        expected = in_float(x, weight, SAME, "none", ROUNDED, None)
        for _ in range(2):
            assert torch.equal(checked.conv(x, weight, SAME, "none", ROUNDED), expected)
    assert warnings_of(caplog) == [
        f"a convolution of (2, 4, 5, {width}) by (3, 4, 3, 3), stride (1, 1), padding (1, 1), "
        "dilation (1, 1), groups 1: computed in float32: oneDNN's kernel is wrong by 2 steps of 255"
        for width in (6, 7)
    ]


def test_kernels_that_add_and_linear_layers_are_checked_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checked, "direct", Faulty(direct))
    monkeypatch.setattr(checked, "plain", Faulty(plain, wavers=True))
    x, weight, other = integers(2, 4, 5, 6), weights(3, 4, 3, 3), integers(2, 3, 5, 6)
    expected = in_float(x, weight, SAME, "none", ROUNDED, other)
    assert torch.equal(checked.conv_add(x, weight, SAME, other, ROUNDED), expected)
    x, weight = integers(3, 5, 8), weights(6, 8)
    expected = in_float(x, weight, None, "gelu", ROUNDED, None)
    assert torch.equal(checked.linear(x, weight, "gelu", ROUNDED), expected)
    assert warnings_of(caplog)[1] == (
        "a linear layer (6, 8) of 15 rows: computed in float32: oneDNN's kernel is wrong by 2 "
        "steps of 255"
    )


def test_without_a_check_the_kernel_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "direct", faulty := Faulty(direct))
    x, weight = integers(2, 4, 5, 6), weights(3, 4, 3, 3)
    y = checked.conv(x, weight, SAME, "none", ROUNDED, verify=False)
    assert faulty.calls == 1
    assert not torch.equal(y, in_float(x, weight, SAME, "none", ROUNDED, None))
    assert torch.equal(
        checked.conv(x, weight, SAME, "none", ROUNDED),
        plain(x, weight, SAME, "none", ROUNDED, None),
    )


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_known_to_be_wrong_is_not_even_called(
    monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    monkeypatch.setattr(checked, "direct", faulty := Faulty(direct))
    x, weight = integers(1, 1, 8, 80), weights(16, 1, 3, 80)
    column = Geometry((1, 2), (0, 0), (1, 1), 1)
    y = checked.conv(x, weight, column, "none", ROUNDED, verify)
    assert faulty.calls == 0
    assert torch.equal(y, plain(x, weight, column, "none", ROUNDED, None))


def test_a_size_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "direct", counting := Faulty(direct, error=0))
    for _ in range(3):  # other weights, the same size
        checked.conv(integers(2, 4, 5, 6), weights(3, 4, 3, 3), SAME, "none", ROUNDED)
    assert counting.calls == 2 + 3
    for rows in (17, 20, 31, 32):  # one power of two
        checked.linear(integers(rows, 8), weights(6, 8), "none", ROUNDED)
    assert counting.calls == 5 + 2 + 4
    for batch in (4, 5, 9):  # beyond four images a batch is like one of four
        checked.conv(integers(batch, 4, 5, 6), weights(3, 4, 3, 3), SAME, "none", ROUNDED)
    assert counting.calls == 11 + 2 + 3
    monkeypatch.setattr(checked, "_MOST_CALLS", 1)
    checked.linear(integers(1, 8), weights(6, 8), "none", ROUNDED)
    assert len(checked._ARRANGEMENTS) == 1


def test_an_empty_batch_has_a_result() -> None:
    y = checked.conv(integers(0, 4, 5, 6), weights(3, 4, 3, 3), SAME, "none", ROUNDED)
    assert (y.shape, y.dtype) == ((0, 3, 5, 6), torch.uint8)
    assert checked.linear(integers(0, 8), weights(6, 8), "none", ROUNDED).shape == (0, 6)


def test_a_check_leaves_the_callers_random_numbers_and_modes_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    x, weight = integers(2, 4, 5, 6), weights(3, 4, 3, 3)
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            checked.conv(x, weight, SAME, "none", Result.of(None))
        assert torch.equal(torch.rand(3, dtype=torch.float32), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert set(checked._ARRANGEMENTS.values()) == {direct}


def test_a_layer_of_more_channels_than_are_compared() -> None:
    x, weight = integers(2, 4, 20, 6), weights(40, 4, 3, 3)
    checked.conv(x, weight, SAME, "none", ROUNDED)
    depthwise = SAME._replace(groups=40)
    checked.conv(integers(2, 40, 20, 6), weights(40, 1, 3, 3), depthwise, "none", ROUNDED)
    checked.conv(
        integers(1, 4, 50), weights(40, 4, 3), Geometry((2,), (1,), (1,), 1), "none", ROUNDED
    )
    assert set(checked._ARRANGEMENTS.values()) == {direct}
