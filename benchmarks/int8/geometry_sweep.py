"""Compute random geometries on int8 kernels, and compare each with float64.

    python -m benchmarks.int8.geometry_sweep [--geometries 50000] [--by lower] [--seed 0]

Convolutions over 1 to 3 dimensions, depthwise, with a multiplier, grouped and dense, first layers,
and linear layers: small and odd sizes, kernels wider than inputs, paddings beyond kernels, strides,
dilations, empty batches. Each is computed twice in each way that a lowered model calls it: with a
zero-point of the input and without, to float32 and to uint8, with an activation function, with an
addition. Wrong is what differs from float64 by more than a step, or between the two calls.

`--by lower` computes as `fxquant.lower` does; `rules` by its rules alone, without its checks;
`plain` writes every convolution plainly; `onednn` calls oneDNN's kernels, whatever they do. The
work is done in a child process: of one that ends or gives no sign for `--limit` seconds the
geometry is noted, and another goes on behind it. Prints each geometry at fault, and counts by rule.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from fxquant.int8 import arrangements, checked
from fxquant.int8.arrangements import Shapes, why_not_direct
from fxquant.int8.operands import Geometry, Result, Uint8, Weight

Layer = Callable[[Uint8, Weight, Geometry | None, str, Result, Uint8 | None], Tensor]

_CHANNELS = (*range(1, 10), 12, 15, *[16] * 3, 17, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65, 80, 128)
_FEW = (1, 1, 2, 3, 4, 5, 6, 8, 8, 12, 15, 16, 17)
_WIDTHS = (1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9)
_LONG_WIDTHS = (10, 11, 13, 14, 15, 16, 17, 20, 24, 31, 32, 64, 80)
_SIZES = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 20)
_LONG_SIZES = (24, 28, 31, 32, 33, 40, 48, 56, 64, 80, 100)
_MOST_PRODUCTS, _MOST_VALUES = 2_000_000, 200_000
_PER_CHILD = 5000  # geometries: the kernels that oneDNN makes stay in memory


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input."""

    kind: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: Geometry | None

    def rule(self, has_zero_point: bool) -> str:
        """Return why oneDNN's kernel is not called as it is; "" if it is."""
        if self.geometry is None:
            return ""
        return why_not_direct(Shapes(self.x, self.weight, self.geometry, has_zero_point)) or ""


def draw(seed: int, number: int) -> Case:
    """Return one geometry: always the same of a number."""
    rng = random.Random(f"{seed} {number}")
    while True:
        case = _linear(rng) if rng.random() < 0.1 else _convolution(rng)
        if case is not None:
            return case


def _linear(rng: random.Random) -> Case:
    rows = rng.choice((0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100))
    inputs = rng.choice((1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 256, 257))
    return Case("linear", (rows, inputs), (rng.choice(_CHANNELS), inputs), None)


def _convolution(rng: random.Random) -> Case | None:
    """Return a convolution; None for one that is too large, or has no output."""
    kind = rng.choice(
        (*["depthwise"] * 7, *["multiplier"] * 3, *["grouped"] * 4, *["dense"] * 4, *["first"] * 2)
    )
    channels, few = rng.choice(_CHANNELS), rng.choice(_FEW)
    inputs, outputs, groups = {
        "depthwise": (channels, channels, channels),
        "multiplier": (few, few * rng.choice((2, 3, 4, 5, 8, 16)), few),
        "grouped": _grouped(rng),
        "dense": (rng.choice((*_FEW, 32, 33, 64)), channels, 1),
        "first": (rng.choice((1, 1, 3)), channels, 1),
    }[kind]
    dims = rng.choice((1, 1, 2, 2, 2, 2, 3, 3))
    axes = [_axis(rng, is_last=axis == dims - 1) for axis in range(dims)]
    sizes, kernel, stride, padding, dilation = (tuple(each) for each in zip(*axes, strict=True))
    batch = rng.choice((1, 1, 1, 2, 3)) if rng.random() < 0.99 else 0
    geometry = Geometry(stride, padding, dilation, groups)
    case = Case(kind, (batch, inputs, *sizes), (outputs, inputs // groups, *kernel), geometry)
    positions = Shapes(case.x, case.weight, geometry, False).outputs()
    values = max(math.prod(case.x), max(batch, 1) * outputs * math.prod(positions))
    products = batch * math.prod(positions) * math.prod(case.weight)
    is_small = values <= _MOST_VALUES and products <= _MOST_PRODUCTS
    return case if min(positions) > 0 and is_small else None


def _grouped(rng: random.Random) -> tuple[int, int, int]:
    groups = rng.choice((2, 2, 3, 4, 5, 8, 16))
    sizes = (1, 2, 3, 4, 5, 7, 8, 16, 17)
    return groups * rng.choice(sizes), groups * rng.choice(sizes), groups


def _axis(rng: random.Random, is_last: bool) -> tuple[int, ...]:
    """Return the size, and the kernel's width, stride, padding and dilation along one axis."""
    is_long = is_last or rng.random() < 0.3
    width = rng.choice(_WIDTHS + _LONG_WIDTHS * is_long)
    size = rng.choice(_SIZES + _LONG_SIZES * is_long)
    dilation, stride = rng.choice((1, 1, 1, 1, 2, 2, 3, 4)), rng.choice((1, 1, 1, 2, 2, 3, 4))
    window = dilation * (width - 1) + 1
    half = window // 2
    padding = rng.choice(
        (0, 0, half, half, rng.randint(0, window), rng.randint(0, min(window + 4, 12)))
    )
    if rng.random() < 0.08:  # one output
        size = max(1, window - 2 * padding)
    return size, width, stride, padding, dilation


def faults(case: Case, number: int, layer: Layer) -> Iterator[str]:
    """Yield what is wrong with the results of `layer`, in words."""
    generator = torch.Generator().manual_seed(number)
    values = torch.randint(0, 256, case.x, dtype=torch.uint8, generator=generator)
    integers = torch.randint(-127, 128, case.weight, dtype=torch.int8, generator=generator)
    outputs, dims = case.weight[0], len(case.weight) - 2
    weight = Weight(
        integers,
        0.01 + 0.02 * torch.rand(outputs, generator=generator),
        50 * torch.randn(outputs, generator=generator),
    )
    assert weight.bias is not None
    for zero_point in (0, 1 + number % 255):
        x = Uint8(values, 0.05, zero_point)
        products = _products(values.double() - zero_point, integers.double(), case.geometry)
        factor = (x.scale * weight.scale.double()).reshape(-1, *[1] * dims)
        y = products * factor + weight.bias.double().reshape(-1, *[1] * dims)
        for way in _ways(case, y, generator):
            yield from (f"z={zero_point}, {each}" for each in way(layer, x, weight))


def _products(x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    if geometry is None:
        return F.linear(x, weight)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.stride) - 1]
    y: Tensor = convolve(x, weight, None, *geometry)
    return y


def _ways(
    case: Case, y: Tensor, generator: torch.Generator
) -> Sequence[Callable[[Layer, Uint8, Weight], Iterator[str]]]:
    """Return checks of the ways in which a lowered model calls the layer.

    Args:
        case: the layer.
        y: float64: its exact result.
        generator: of the operand to add.
    """
    scale = y.abs().max().item() / 110 if y.numel() and y.any() else 1.0
    integers = Result(scale, 128, 0, 255)
    half = Result(scale, 128, 128, 200)  # behind a ReLU6
    ways = [
        partial(_differences, case, "none", Result.of(None), y, None),
        partial(_differences, case, "none", half, y, None),
    ]
    if len(case.weight) in (2, 4):
        ways.append(partial(_differences, case, "swish", integers, F.silu(y), None))
    if len(case.weight) == 4:
        operand = torch.randint(0, 256, y.shape, dtype=torch.uint8, generator=generator)
        total = y + (operand.double() - 100) * scale
        other = Uint8(operand, scale, 100)
        ways.append(partial(_differences, case, "none", integers, total, other))
    return ways


def _differences(
    case: Case,
    activation: str,
    result: Result,
    y: Tensor,
    other: Uint8 | None,
    layer: Layer,
    x: Uint8,
    weight: Weight,
) -> Iterator[str]:
    """Yield how two calls differ from the exact result `y`, and from each other."""
    way = f"{activation}{' + add' if other else ''} to {result.dtype}"
    first, second = (
        layer(x, weight, case.geometry, activation, result, _anew(other)) for _ in range(2)
    )
    if result.scale is None:
        wrong = (first.double() - y).abs() > 1e-4 * (1 + y.abs().max()) if y.numel() else first > 1
    else:
        steps = (torch.round(y / result.scale) + result.zero_point).clamp(result.low, result.high)
        wrong = (first.double() - steps).abs() > 1
    if first.shape != y.shape or wrong.any():
        yield f"{way}: {wrong.double().mean().item():.1%} wrong"
    if not torch.equal(first, second):
        yield f"{way}: two calls differ"


def _anew(other: Uint8 | None) -> Uint8 | None:
    """Return a copy, which may be overwritten, as kernels take it: channels last."""
    if other is None:
        return None
    values = other.values.clone(memory_format=torch.channels_last)
    return other._replace(values=values)


def _checked(verify: bool) -> Layer:
    """Return what a lowered model computes a layer by."""

    def layer(
        x: Uint8,
        weight: Weight,
        geometry: Geometry | None,
        activation: str,
        result: Result,
        other: Uint8 | None,
    ) -> Tensor:
        if geometry is None:
            return checked.linear(x, weight, activation, result, verify)
        if other is None:
            return checked.conv(x, weight, geometry, activation, result, verify)
        return checked.conv_add(x, weight, geometry, other, result, verify)

    return layer


def _plain(x: Uint8, weight: Weight, geometry: Geometry | None, *rest: Any) -> Tensor:
    layer = arrangements.direct if geometry is None else arrangements.plain
    return layer(x, weight, geometry, *rest)


LAYERS: dict[str, Layer] = {
    "lower": _checked(verify=True),
    "rules": _checked(verify=False),
    "plain": _plain,
    "onednn": arrangements.direct,
}


def work(seed: int, numbers: range, by: str) -> None:
    """Print a line a geometry: its number and what is wrong with it."""
    torch.set_num_threads(1)
    for number in numbers:
        found = "; ".join(faults(draw(seed, number), number, LAYERS[by]))
        print(f"{number}\t{found}", flush=True)


def watched(
    command: Callable[[range], Sequence[str]], numbers: range, limit: float
) -> Iterator[tuple[int, str]]:
    """Yield each number with what a child process says of it; it may die, or never end.

    Args:
        command: that works on a range, and prints a line a number: itself, a tab, and text.
        numbers: all of them, rising by one.
        limit: seconds without a line, beyond 60 for the first.
    """
    start = numbers.start
    while start < numbers.stop:
        several = range(start, min(start + _PER_CHILD, numbers.stop))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command(several), stdout=subprocess.PIPE, env=environment) as child:
            for line in _lines(child, limit):
                number, _, found = line.partition("\t")
                yield int(number), found
                start = int(number) + 1
            why = f"did not end in {limit:g} s"
            if child.poll() is not None:
                why = f"ended its process with {child.returncode}"
            child.kill()
        if start < several.stop:
            yield start, why
            start += 1


def _lines(child: subprocess.Popen[bytes], limit: float) -> Iterator[str]:
    """Yield lines until the process ends, or writes none for `limit` seconds."""
    assert child.stdout is not None
    rest, seconds = b"", 60.0 + limit  # until it has imported PyTorch
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.select(seconds):
            block = os.read(child.stdout.fileno(), 1 << 16)
            if not block:
                child.wait()
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode() for line in lines)
            seconds = limit


def sweep(count: int, seed: int, by: str, limit: float) -> tuple[str, int]:
    """Print each geometry at fault; return counts by kind and rule, and how many are at fault."""
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    num_wrong = 0

    def command(numbers: range) -> Sequence[str]:
        options = ["--work", f"{numbers.start}:{numbers.stop}", "--by", by, "--seed", str(seed)]
        return [sys.executable, "-m", "benchmarks.int8.geometry_sweep", *options]

    for number, found in watched(command, range(count), limit):
        case = draw(seed, number)
        rows = [case.kind, *filter(None, [case.rule(has_zero_point=True)])]
        counts.update(rows)
        if found:
            wrong.update(rows)
            num_wrong += 1
            print(f"{number}: {case}: {found}", flush=True)
        if number % 1000 == 999:
            print(f"{number + 1} geometries, {num_wrong} at fault", file=sys.stderr, flush=True)
    cells = [[row, counts[row], wrong[row]] for row in sorted(counts)]
    cells.append(["all", count, num_wrong])
    return tabulate(cells, ["kind, rule", "geometries", "at fault"]), num_wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the faults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--geometries", type=int, default=50_000)
    parser.add_argument("--by", choices=LAYERS, default="lower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one geometry")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        start, stop = map(int, options.work.split(":"))
        work(options.seed, range(start, stop), options.by)
        return
    table, num_wrong = sweep(options.geometries, options.seed, options.by, options.limit)
    print(table)
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
