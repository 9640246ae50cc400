"""Where two results differ, trees of tensors and other values, by more than rounding explains.

Sums in another order differ in their last bits, and networks amplify that. So floating-point
tensors agree where the power of the difference is below ε of the signal's, ε that of their dtype
(69 dB in float32, 30 in float16, 21 in bfloat16), and where no value is off by more than 16·√ε of
the largest. All else must be the same: types of containers, shapes, dtypes, integers, booleans,
strings. NaN equals NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.numerics.containers import items_of
from fxquant.numerics.decibels import sqnr

_MOST = 16.0  # √ε: a power below ε may still be one value that is all wrong, in a million others


@dataclass(frozen=True)
class Difference:
    """One place where two trees differ."""

    where: str
    """As Python would ask for it, behind the result: "[0]['scores']"."""
    what: str

    def __str__(self) -> str:
        """Return both: "output[0]: …"."""
        return f"output{self.where}: {self.what}"


def find_differences(expected: Any, actual: Any) -> list[Difference]:
    """Return all places where `actual` is not what was `expected`.

    >>> expected = [torch.ones(2), 3]
    >>> [str(each) for each in find_differences(expected, [torch.ones(2) + 0.1, 4])]
    ['output[0]: agrees to 20.0 dB', 'output[1]: 4 instead of 3']
    """
    return list(_compare(expected, actual, "", set()))


def _compare(expected: Any, actual: Any, where: str, seen: set[int]) -> Iterator[Difference]:
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        what = _between_tensors(expected, actual)
        if what is not None:
            yield Difference(where, what)
        return
    if type(expected) is not type(actual):
        kinds = (type(actual).__name__, type(expected).__name__)
        yield Difference(where, "type {} instead of {}".format(*kinds))
        return
    parts, others = _parts(expected), _parts(actual)
    if parts is None or others is None:
        if not _is_same(expected, actual):
            yield Difference(where, f"{actual!r:.60} instead of {expected!r:.60}")
    elif parts.keys() != others.keys():
        yield Difference(where, f"{len(others)} parts instead of {len(parts)}")
    elif id(expected) not in seen:  # which it is where an object holds itself
        for key, part in parts.items():
            yield from _compare(part, others[key], where + key, {*seen, id(expected)})


def _parts(value: Any) -> dict[str, Any] | None:
    """Return what a container holds, by how it is asked for; None: it is none."""
    items = items_of(value)
    if items is not None:
        form = "[{!r}]" if isinstance(value, (Mapping, list, tuple)) else ".{}"
        return {form.format(key): each for key, each in items.items()}
    is_compared = any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1])
    if is_compared or isinstance(value, type) or not hasattr(value, "__dict__"):
        return None
    return {f".{name}": each for name, each in vars(value).items()}


def _is_same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(actual)
    same: Any = expected == actual
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _between_tensors(expected: Tensor, actual: Tensor) -> str | None:
    if expected.shape != actual.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if expected.dtype != actual.dtype:
        return f"{actual.dtype} instead of {expected.dtype}"
    actual = actual.to(expected.device)
    if torch.equal(expected, actual):
        return None
    if expected.is_complex():
        return _between_tensors(torch.view_as_real(expected), torch.view_as_real(actual))
    if not expected.is_floating_point():
        return f"{int((expected != actual).sum())} of {expected.numel()} values differ"
    finite = torch.isfinite(expected)
    others = torch.where(finite, 0.0, expected), torch.where(finite, 0.0, actual)
    if not torch.equal(finite, torch.isfinite(actual)) or not torch.equal(
        *(torch.nan_to_num(each, nan=0.5) for each in others)
    ):
        return "NaN or infinity in other places"
    if not torch.any(finite):
        return None
    signal, other = expected[finite].double(), actual[finite].double()
    agreement, epsilon = sqnr(signal, other), torch.finfo(expected.dtype).eps
    most = (signal - other).abs().max()
    if agreement >= -10 * math.log10(epsilon) and most <= _MOST * epsilon**0.5 * signal.abs().max():
        return None
    return f"agrees to {agreement:.1f} dB"
