"""Products of large matrices, in the dtype that the machine multiplies fastest.

In bfloat16 what an optimizer computes anew in each step: 2.5 times as fast as float32 on AVX-512.
In int8 the Gram matrix of a layer's inputs, most of what a regression on them takes: 4 times as
fast on processors with VNNI.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_LARGE = 1 << 15  # weights; below, converting costs what multiplying saves


def product_dtype(inputs: Tensor, num_outputs: int) -> torch.dtype:
    """Return the dtype in which products of `inputs` (groups, rows, in) and weights are fastest.

    bfloat16 where the processor or GPU multiplies it in hardware, 2.5 times as fast as float32 on
    AVX-512, and the weight is large enough; else float32.
    """
    is_large = inputs.shape[0] == 1 and inputs.shape[2] * num_outputs >= _LARGE
    return torch.bfloat16 if is_large and multiplies_bfloat16(inputs.device.type) else torch.float32


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Say whether the processor or the GPU has instructions for products of bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


_STRIP = 1024  # columns of a Gram matrix at a time; those that mirror others are not multiplied
_FEW = 512  # inputs or rows: below, rounding costs what multiplying saves
_MOST_ROWS = (1 << 31) // 127**2  # sums of so many products fit into int32
_ROWS_AT_ONCE = 256  # that are rounded while they are in the cache
_COARSE = 5e-3  # of an input's variance; regressions are damped by more
_SOME = 1 / 8  # of the inputs: products of so few take little in float32
_ROUNDING = 1e-6  # of float32's sums


def gram_matrix(rows: Tensor, mean: Tensor) -> Tensor:
    """Return Σ (x - mean)ᵀ (x - mean) over the rows of each group, float32.

    Args:
        rows: (groups, rows, in), float32.
        mean: of what varies about it, (groups, in).

    Returns:
        (groups, in, in). Of a large matrix on a processor with VNNI the products are those of
        integers, each input in 255 steps of its own to its largest value: that adds a little to
        each variance, as damping does. Where a variance comes out wrong by more than 0.5 %, as of
        inputs far from 0, or with a value 31 standard deviations out, products are float32's: those
        of these inputs, or of all, if they are many.
    """
    if len(rows) == 1 and min(rows.shape[1:]) >= _FEW and rows.shape[1] <= _MOST_ROWS:
        found = _gram_of_integers(rows[0], mean[0]) if multiplies_int8(rows.device.type) else None
        return _gram_of_floats(rows[0] - mean[0])[None] if found is None else found[None]
    centred = rows - mean[:, None]
    return torch.bmm(centred.mT, centred)


def _gram_of_integers(rows: Tensor, mean: Tensor) -> Tensor | None:
    """Return the Gram matrix of one group from int8; None where that is too coarse.

    Rounded as they are, not about their mean: what is 0, as half of all is behind a ReLU, stays 0.
    """
    largest = torch.maximum(rows.amax(0), -rows.amin(0))
    if not torch.isfinite(largest).all():
        return None
    step = torch.where(largest > 0, largest / 127, 1.0)
    integers = torch.empty(rows.shape, dtype=torch.int8)
    sums = torch.zeros(rows.shape[1], dtype=torch.float64)
    power = torch.zeros_like(sums)
    for some, place in zip(
        torch.split(rows, _ROWS_AT_ONCE), torch.split(integers, _ROWS_AT_ONCE), strict=True
    ):
        power += some.square().sum(0)
        whole = (some / step).round_()
        sums += whole.sum(0)  # exact: 256 · 127 is
        place.copy_(whole)
    gram = rows.new_empty(len(step), len(step))
    for start in range(0, len(step), _STRIP):
        strip = slice(start, start + _STRIP)
        product = torch._int_mm(integers[:, strip].T.contiguous(), integers[:, : start + _STRIP])
        gram[strip, : start + _STRIP] = product
        gram[: start + _STRIP, strip] = product.T
    middle = (mean / step).to(torch.float64)  # Σ (q - m)ᵀ (q - m) = Σ qᵀ q - (mᵀ r + rᵀ m)
    rest = (sums - len(rows) / 2 * middle).to(rows.dtype)
    for left, right in ((middle.to(rows.dtype), rest), (rest, middle.to(rows.dtype))):
        gram.addr_(left, right, alpha=-1)
    gram.mul_(step).mul_(step[:, None])
    own = mean.to(torch.float64)
    wanted = power + own * (len(rows) * own - 2 * sums * step)  # Σ (x - mean)²
    error = (gram.diagonal() - wanted).abs()
    coarse = (error > _COARSE * wanted + _ROUNDING * power).nonzero().squeeze(1)
    if len(coarse) > _SOME * len(mean):
        return None
    if len(coarse):
        centred = rows[:, coarse] - mean[coarse]
        exact = torch.addr(centred.T @ rows, centred.sum(0), mean, alpha=-1)
        gram[coarse], gram[:, coarse] = exact, exact.T
    return gram


def _gram_of_floats(centred: Tensor) -> Tensor:
    sums = centred.new_empty(centred.shape[1], centred.shape[1])
    for start in range(0, len(sums), _STRIP):
        strip = slice(start, start + _STRIP)
        product = centred[:, strip].T @ centred[:, : start + _STRIP]
        sums[strip, : start + _STRIP] = product
        sums[: start + _STRIP, strip] = product.T
    return sums


@cache
def multiplies_int8(device: str) -> bool:
    """Say whether the processor multiplies int8 in hardware, and rightly: that is tried once.

    Without VNNI two products are added in int16, which saturates.
    """
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    if device != "cpu" or has_vnni is None or not has_vnni():
        return False
    values = torch.tensor([-127, 127, -1, 64, 127, 127], dtype=torch.int8)
    left, right = values.repeat(64, 32), values.repeat(32, 1).T.repeat(1, 64).reshape(192, -1)
    try:
        product = torch._int_mm(left, right)
    except RuntimeError:  # this build has no such kernel
        return False
    return torch.equal(product.long(), left.long() @ right.long())
