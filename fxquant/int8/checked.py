"""oneDNN's kernels, checked against float32 before their results are used.

The first call of a size finds the arrangement that is right here: oneDNN's kernel as it is, written
plainly, or float32. The check computes a layer of that size, of integers drawn at random, twice
with the kernel, which must agree, and some rows of it in float32: a few milliseconds. What it
found is kept for the process; another processor or another oneDNN finds its own.
"""

from __future__ import annotations

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.int8.arrangements import Arrangement, Shapes, direct, in_float, plain, why_not_direct
from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from fxquant.int8.samples import Sample, leave_litter, random_integers

_logger = logging.getLogger("fxquant")
_MOST_IMAGES = 4  # or threads: larger batches are taken for as many, and are not checked again
_MOST_ROWS = 16  # of linear layers: beyond there is one check for each power of two
_MOST_VALUES = 2**28  # of an image
_MOST_CALLS = 4096  # whose arrangements are kept


class Call(NamedTuple):
    """What decides how oneDNN computes a layer."""

    x: tuple[int, ...]
    """(N, in, *positions); of a linear layer (rows, in)."""
    weight: tuple[int, ...]
    """(out, in/groups, *kernel), of a linear layer (out, in)."""
    geometry: Geometry | None
    """None for a linear layer."""
    has_zero_point: bool
    num_scales: int
    has_bias: bool
    activation: str
    adds: bool
    gives_integers: bool
    num_threads: int
    verify: bool
    """Whether to check what no rule says of the kernel."""

    def __str__(self) -> str:
        """Return the sizes in words."""
        if self.geometry is None:
            return f"a linear layer {tuple(self.weight)} of {self.x[0]} rows"
        parts = zip(Geometry._fields, self.geometry, strict=True)
        geometry = ", ".join(f"{name} {value}" for name, value in parts)
        return f"a convolution of {tuple(self.x)} by {tuple(self.weight)}, {geometry}"


_ARRANGEMENTS: dict[tuple[Any, ...], Arrangement] = {}
"""Of the calls that were made."""


def conv(
    x: Uint8,
    weight: Weight,
    geometry: Geometry,
    activation: str,
    result: Result,
    verify: bool = True,
) -> Tensor:
    """Return a convolution over 1 to 3 dimensions, an activation function behind it.

    Args:
        x: (N, in, *positions).
        weight: (out, in/groups, *kernel).
        geometry: of the kernel.
        activation: "none"; over two dimensions also "swish" or "hardswish".
        result: what to return.
        verify: check the kernel at the first call of a size.
    """
    return _compute(x, weight, geometry, activation, result, None, verify)


def conv_add(
    x: Uint8, weight: Weight, geometry: Geometry, other: Uint8, result: Result, verify: bool = True
) -> Tensor:
    """Return a convolution over two dimensions plus `other`, which is of the result's shape.

    `other` may be overwritten. The rest is as for `conv`.
    """
    return _compute(x, weight, geometry, "none", result, other, verify)


def linear(
    x: Uint8, weight: Weight, activation: str, result: Result, verify: bool = True
) -> Tensor:
    """Return x · weightᵀ + bias, an activation function behind it.

    Args:
        x: (…, in).
        weight: (out, in).
        activation: "none", "swish", "hardswish", "tanh", "gelu" or "gelu_tanh".
        result: what to return.
        verify: as for `conv`.
    """
    return _compute(x, weight, None, activation, result, None, verify)


def _compute(
    x: Uint8,
    weight: Weight,
    geometry: Geometry | None,
    activation: str,
    result: Result,
    other: Uint8 | None,
    verify: bool,
) -> Tensor:
    adds = other is not None
    key = _key(x.values.shape, x.zero_point, weight, geometry, activation, result, adds, verify)
    arrangement = _ARRANGEMENTS.get(key) or _arrange(Call._make(key))
    return arrangement(x, weight, geometry, activation, result, other)


def why_in_float(
    shape: tuple[int, ...],
    zero_point: int,
    weight: Weight,
    geometry: Geometry,
    activation: str,
    result: Result,
    adds: bool,
) -> str | None:
    """Return why a convolution of that shape is computed in float32, or None if oneDNN computes it.

    None too of a shape that a file made up.
    """
    if not _fits(Shapes(shape, tuple(weight.integers.shape), geometry, False)):
        return None
    key = _key(shape, zero_point, weight, geometry, activation, result, adds, verify=True)
    return _chosen(Call._make(key))[1]


def _fits(shapes: Shapes) -> bool:
    """Say whether a convolution can have such an input, of not too many values an image."""
    x, weight = shapes.x, shapes.weight
    if len(x) != len(weight) or min(x) < 1 or math.prod(x[1:]) > _MOST_VALUES:
        return False
    return x[1] == weight[1] * shapes.geometry.groups and min(shapes.outputs()) > 0


def _key(
    shape: tuple[int, ...],
    zero_point: int,
    weight: Weight,
    geometry: Geometry | None,
    activation: str,
    result: Result,
    adds: bool,
    verify: bool,
) -> tuple[Any, ...]:
    """Return the fields of a `Call`: a tuple of them is found as well, and sooner made."""
    num_threads = torch.get_num_threads()
    most_images = max(num_threads, _MOST_IMAGES)
    if geometry is None:
        rows = math.prod(shape[:-1])
        shape = (rows if rows <= _MOST_ROWS else 1 << (rows - 1).bit_length(), shape[-1])
    elif shape[0] > most_images:
        shape = (most_images, *shape[1:])
    return (
        shape,
        weight.integers.shape,
        geometry,
        zero_point != 0,
        weight.scale.numel(),
        weight.bias is not None,
        activation,
        adds,
        result.scale is not None,
        num_threads,
        verify,
    )


def _arrange(call: Call) -> Arrangement:
    """Return the arrangement for a call that is made for the first time."""
    arrangement, reason = _chosen(call)
    if reason is not None:
        _logger.warning("%s: computed in float32: %s", call, reason)
    if len(_ARRANGEMENTS) >= _MOST_CALLS:
        _ARRANGEMENTS.clear()
    _ARRANGEMENTS[call] = arrangement
    return arrangement


@functools.lru_cache(_MOST_CALLS)
def _chosen(call: Call) -> tuple[Arrangement, str | None]:
    """Return the first arrangement that is right; with a reason where it is not oneDNN's."""
    candidates = [direct]
    if call.geometry is not None:
        shapes = Shapes(call.x, call.weight, call.geometry, call.has_zero_point)
        candidates = [plain] if why_not_direct(shapes) else [direct, plain]
    if not call.verify:
        return candidates[0], None
    reasons = []
    # In a thread of its own: no mode of the caller's is on there, as autocast or tracing.
    with ThreadPoolExecutor(1) as thread:
        for arrangement in candidates:
            thread.submit(torch.set_num_threads, call.num_threads).result()
            reason = thread.submit(_why_wrong, arrangement, call).result()
            if reason is None:
                return arrangement, None
            reasons.append(reason)
    return in_float, reasons[0]


@torch.no_grad()
def _why_wrong(arrangement: Arrangement, call: Call) -> str | None:
    """Return how a layer of random integers differs from float32, or None if it does not."""
    if 0 in call.x:  # of what is empty nothing can be wrong
        return None
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(call.num_scales, generator=generator, dtype=torch.float32) + 0.5
    step = math.sqrt(math.prod(call.weight[1:])) * 74 * 78 / 30  # results spread over ±90
    bias = torch.randn(call.weight[0], generator=generator, dtype=torch.float32) * 30 * step
    integers = random_integers(call.weight, generator).view(torch.int8)
    weight = Weight(integers, scale, bias if call.has_bias else None)
    result = Result(step, 128, 0, 255) if call.gives_integers else Result.of(None)
    other = Uint8(random_integers(_result_shape(call), generator), step, 100) if call.adds else None
    x = Uint8(random_integers(call.x, generator), 1.0, 101 if call.has_zero_point else 0)

    sample = Sample(x, weight, call.geometry)
    others = None if other is None else other._replace(values=sample.of(other.values))
    expected = in_float(*sample.operands, call.activation, result, others)
    results = []
    for value in (85, 170):
        leave_litter(value)
        operand = other and other._replace(values=other.values.clone())
        results.append(arrangement(x, weight, call.geometry, call.activation, result, operand))
    if not torch.equal(*results):
        return "two calls of oneDNN's kernel differ"
    error = (sample.of(results[0]).double() - expected.double()).abs().max().item()
    if error > (1 if call.gives_integers else step / 10):
        unit = 1 if call.gives_integers else step
        return f"oneDNN's kernel is wrong by {error / unit:.0f} steps of 255"
    return None


def _result_shape(call: Call) -> tuple[int, ...]:
    assert call.geometry is not None
    shapes = Shapes(call.x, call.weight, call.geometry, call.has_zero_point)
    return (call.x[0], call.weight[0], *shapes.outputs())
