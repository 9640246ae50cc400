"""What counts as a difference, and where it is said to be."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant.numerics.differences import find_differences

X = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", ["low", "high"])


@dataclass
class Boxes:
    scores: Any
    name: str = "boxes"


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


def differences(expected: Any, actual: Any) -> list[str]:
    return [str(each) for each in find_differences(expected, actual)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: X, lambda: [X, (X, {"a": X})], lambda: OrderedDict(a=X), lambda: Pair(X, 1),
        lambda: Boxes(X), lambda: Plain(X), lambda: None, lambda: "text", lambda: math.nan,
        lambda: torch.tensor([math.nan, math.inf, -math.inf, 1.0]), lambda: np.arange(3),
        lambda: torch.tensor([math.nan]),
        lambda: torch.tensor([1 + 2j]), lambda: torch.zeros(0, 3), lambda: X > 0, lambda: X.shape,
    ],
)  # fmt: skip
def test_what_is_the_same_does_not_differ(make: Any) -> None:
    assert differences(make(), make()) == []


@pytest.mark.parametrize(
    ("expected", "actual", "what"),
    [
        (X, X + 0.1, "output: agrees to 20.0 dB"),
        ([X], (X,), "output: type tuple instead of list"),
        ({"a": X}, OrderedDict(a=X), "output: type OrderedDict instead of dict"),
        ([X, [X]], [X, [X[:3]]], "output[1][0]: shape (3, 100) instead of (100, 100)"),
        ({"a": X}, {"a": X.double()}, "output['a']: torch.float64 instead of torch.float32"),
        ((X,), (X, X), "output: 2 parts instead of 1"),
        (Boxes(X), Boxes(X, "b"), "output.name: 'b' instead of 'boxes'"),
        (Plain(1), Plain(2), "output.value: 2 instead of 1"),
        (Pair(1, 2), Pair(1, True), "output[1]: type bool instead of int"),
        (X > 0, X > 0.01, "output: 43 of 10000 values differ"),
        (X, None, "output: type NoneType instead of Tensor"),
        (torch.tensor([math.nan, 1]), torch.tensor([1, math.nan]), "output: NaN or infinity in"),
        (torch.tensor([math.inf]), torch.tensor([-math.inf]), "output: NaN or infinity in"),
        (torch.tensor([math.inf]), torch.tensor([math.nan]), "output: NaN or infinity in"),
        (torch.zeros(3), torch.ones(3), "output: agrees to -inf dB"),
        (torch.tensor([2j]), torch.tensor([1j]), "output: agrees to 6.0 dB"),
        (np.arange(3), np.arange(3) + 1, "output: array([1, 2, 3]) instead of array([0, 1, 2])"),
    ],
)
def test_says_where_and_what(expected: Any, actual: Any, what: str) -> None:
    (found,) = differences(expected, actual)
    assert found.startswith(what)


@pytest.mark.parametrize(
    ("dtype", "relative"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 3e-2)],
)
def test_rounding_is_no_difference(dtype: torch.dtype, relative: float) -> None:
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1)).to(torch.float64)
    exact = X.to(torch.float64)

    def noisy(size: float) -> Tensor:
        return (exact * (1 + size * noise)).to(dtype)

    assert differences(exact.to(dtype), noisy(relative)) == []
    assert differences(exact.to(dtype), noisy(30 * relative)) != []


def test_one_wrong_value_among_many_differs() -> None:
    wrong = torch.ones(4, 1000, 1000)
    wrong[1, 2, 3] = 0
    assert differences(torch.ones_like(wrong), wrong) == ["output: agrees to 66.0 dB"]


def test_an_object_that_holds_itself_is_compared_once() -> None:
    one, other = Plain(1), Plain(1)
    one.me, other.me = one, other  # type: ignore[attr-defined]
    assert differences(one, other) == []
