"""Convolutions and linear layers on integers, as primitives.

A 1×1 convolution is a product of a matrix and the weight, too; which of the two is sooner done
depends on shape, threads and processor, and is found by a race of a few calls. The layer keeps the
outcome, and so does its file: who loads it on such a machine need not race again. That a kernel is
right is checked in each process.
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxquant.int8 import (
    Geometry,
    Int8Conv,
    Int8Layer,
    Result,
    Sample,
    Shapes,
    Uint8,
    Weight,
    as_result,
    in_float,
    prepacking,
    random_integers,
    why_not_direct,
)
from fxquant.programs.library import Axes, Refused, library
from fxquant.programs.primitives import (
    BIAS,
    RESULT,
    SCALES,
    SOURCE,
    WEIGHT,
    ZERO_POINTS,
    Attributes,
    Description,
    Layout,
    Primitive,
    channels_last,
    is_channels_last,
    packed,
)

_INFERENCE, _DIRECT, _UINT8 = 96, 1, 6  # dnnl_forward_inference, dnnl_convolution_direct, dnnl_u8
_ROUNDS = 5  # of a race: each call takes 10 µs to some milliseconds
_MOST_IMAGES = 4  # or threads
_MOST_KEPT = 8  # of one layer: sizes of its input
_FLOAT = torch.float32
_ELTWISE = {
    "tanh": (0x21, 0.0, 0.0),
    "gelu_tanh": (0x2B, 0.0, 0.0),
    "swish": (0x2C, 1.0, 0.0),
    "gelu": (0x31, 0.0, 0.0),
    "hardswish": (0x34, 1 / 6, 1 / 2),
}
"""dnnl_eltwise_…, α and β."""
_CLIP = 0x2E
_MOST = torch.finfo(torch.float32).max


def result_shape(layer: Int8Layer, x: Tensor) -> tuple[int, ...] | None:
    """Return the shape of the result, or None if no primitive computes the layer.

    What is known to be wrong is left to `fxquant.int8`, which arranges it otherwise.
    """
    if not isinstance(x, Tensor) or x.numel() == 0 or x.dtype != torch.uint8:
        return None
    weight = tuple(layer.weight_integers.shape)
    if not isinstance(layer, Int8Conv):
        fits = x.dim() > 1 and x.shape[-1] == weight[1]
        return (*x.shape[:-1], weight[0]) if fits else None
    if x.dim() != len(layer.stride) + 2 or x.shape[1] != layer.in_channels:
        return None
    shapes = Shapes(tuple(x.shape), weight, layer.geometry, layer.input.zero_point != 0)
    outputs = shapes.outputs()
    return None if min(outputs) < 1 or why_not_direct(shapes) else (len(x), weight[0], *outputs)


def is_laid_out(layer: Int8Layer, x: Tensor) -> bool:
    """Say whether `x` lies in memory as the primitives of a layer want it."""
    return is_channels_last(x) if isinstance(layer, Int8Conv) else x.is_contiguous()


def laid_out(layer: Int8Layer, x: Tensor) -> Tensor:
    """Return `x` in that layout."""
    return channels_last(x) if isinstance(layer, Int8Conv) else x.contiguous()


def key_of(layer: Int8Layer, x: Tensor, adds: bool) -> tuple[Any, ...]:
    """Return all that decides how oneDNN computes a layer; large batches count as smaller ones."""
    result, output, shape = layer.result, layer.output, tuple(x.shape)
    if isinstance(layer, Int8Conv):
        shape = (min(shape[0], max(_MOST_IMAGES, torch.get_num_threads())), *shape[1:])
    else:
        shape = (1 << (math.prod(shape[:-1]) - 1).bit_length(), shape[-1])
    return (
        *(shape, tuple(layer.weight_integers.shape), getattr(layer, "geometry", None)),
        *(layer.input.zero_point != 0, output is not None and output.zero_point != 0),
        *(layer.weight_scale.numel() > 1, layer.bias is not None, layer.activation, adds),
        *(result.dtype, _bounds(result) is not None, torch.get_num_threads()),
    )


def kept_way(layer: Int8Layer, x: Tensor) -> str | None:
    """Return the way that was fastest for such an input on such a machine; None: not known."""
    return layer.quickest.get(_circumstances(x))


def keep_way(layer: Int8Layer, x: Tensor, way: str) -> None:
    """Note which way was fastest, if it is known where."""
    if not _processor():
        return
    others = {key: each for key, each in layer.quickest.items() if key != _circumstances(x)}
    last = list(others.items())[1 - _MOST_KEPT :]
    layer.quickest = {**dict(last), _circumstances(x): way}


def _circumstances(x: Tensor) -> str:
    threads = torch.get_num_threads()
    return f"{tuple(x.shape)}, {threads} threads, PyTorch {torch.__version__}, {_processor()}"


@functools.cache
def _processor() -> str:
    """Return the processor's name, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def ways(layer: Int8Layer, x: Tensor, y: Tensor, adds: bool) -> dict[str, Callable[[], Primitive]]:
    """Return the ways to compute `layer`, by name, and what makes the primitive of each.

    Args:
        layer: with any geometry, activation function and clamp.
        x: its input, which a primitive reads whenever it runs.
        y: its result, which it writes.
        adds: what is there before is added.
    """
    if not isinstance(layer, Int8Conv):
        rows, results = x.flatten(0, -2), y.flatten(0, -2)
        image, filtered = (each.t()[None, :, :, None] for each in (rows, results))
        weight = layer.weight_integers[:, :, None, None]
        geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
        return {
            "product": functools.partial(_product, layer, rows, results, adds),
            "convolution": functools.partial(
                _convolution, layer, image, filtered, adds, weight, geometry
            ),
        }
    own = (layer.weight_integers, layer.geometry)
    found: dict[str, Callable[[], Primitive]] = {
        "convolution": functools.partial(_convolution, layer, x, y, adds, *own)
    }
    is_matrix = set(layer.kernel_size) == {1} and layer.groups == 1
    if is_matrix and not any(layer.padding) and set(layer.stride) == {1}:
        rows, results = (each.movedim(1, -1).flatten(0, -2) for each in (x, y))
        found["product"] = functools.partial(_product, layer, rows, results, adds)
    return found


def fastest(ways: Sequence[tuple[str, Primitive]]) -> tuple[str, Primitive]:
    """Return the primitive that ran soonest, with its name, by the best of some runs each."""
    if len(ways) == 1:
        return ways[0]
    seconds = [math.inf] * len(ways)
    for _ in range(_ROUNDS):
        for number, (_, way) in enumerate(ways):
            seconds[number] = min(seconds[number], soonest(way.run, rounds=1))
    return ways[seconds.index(min(seconds))]


def soonest(run: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Return the seconds of the shortest of some runs."""
    shortest = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def why_wrong(
    primitive: Primitive, layer: Int8Layer, x: Tensor, y: Tensor, adds: bool
) -> str | None:
    """Return how a primitive of `ways` differs from float32 on random integers; None: not at all.

    It runs twice, with other litter in the memory that it works in and writes to, and some of its
    rows are compared. What `x` holds stays, what `y` holds does not.
    """
    kept, generator = x.clone(), torch.Generator().manual_seed(0)
    x.copy_(random_integers(x.shape, generator))
    other = random_integers(y.shape, generator) if adds else None
    buffers: Any = layer._buffers
    weight = Weight(buffers["weight_integers"], buffers["weight_scale"], buffers["bias"])
    geometry = layer.geometry if isinstance(layer, Int8Conv) else None
    rows, results = (x, y) if geometry else (x.flatten(0, -2), y.flatten(0, -2))
    sample = Sample(Uint8.of(rows, layer.input), weight, geometry)
    addend = None
    if other is not None:
        assert layer.other is not None
        addend = Uint8.of(sample.of(other), layer.other)
    exact = in_float(*sample.operands, layer.activation, Result.of(None), addend)
    result = layer.result
    if result.scale is not None and _bounds(result) is None:
        spread = max(exact.abs().max().item(), 1e-30) / 128  # real scales may round all to 0 or 255
        result = result._replace(scale=spread)
    expected = as_result(exact.clone(), result)
    found = []
    with primitive.scaled_by(result.scale):
        for litter in (85, 170):
            primitive.leave_litter(litter)
            if other is not None:
                y.copy_(other)
            primitive.run()
            found.append(results.clone())
    x.copy_(kept)
    if not torch.equal(*found):
        return "two runs of oneDNN's kernel differ"
    error = (sample.of(found[0]).double() - expected.double()).abs().max().item()
    step = 1.0 if result.scale is not None else exact.abs().max().item() / 1000
    return f"oneDNN's kernel is wrong by {error:.3g}" if error > step else None


def _product(layer: Int8Layer, x: Tensor, y: Tensor, adds: bool) -> Primitive:
    """Return rows of `x` times the weight, into rows of `y`."""
    weight = layer.weight_integers.flatten(1).t()
    bias = None if layer.bias is None else layer.bias[None]
    description = Description(
        "matmul",
        *(library().engine, Layout.of(x), Layout.free(weight.shape, torch.int8)),
        *(bias if bias is None else Layout.of(bias), Layout.of(y), _attributes(layer, adds, 2)),
    )
    return _bound(description, layer, (x, Layout.of(x)), weight, bias, (y, Layout.of(y)))


def _convolution(
    layer: Int8Layer, x: Tensor, y: Tensor, adds: bool, weight: Tensor, geometry: Geometry
) -> Primitive:
    """Return a convolution of `x` by `weight` into `y`."""
    stride, padding, dilation, groups = geometry
    bias, outputs = layer.bias, 1
    if groups > 1:
        weight, outputs = weight.reshape(groups, -1, *weight.shape[1:]), 3
    source, result = Layout.channels_last(x), Layout.channels_last(y)
    description = Description(
        "convolution_forward",
        *(library().engine, _INFERENCE, _DIRECT),
        *(source, Layout.free(weight.shape, torch.int8)),
        *(bias if bias is None else Layout.of(bias), result),
        *(Axes(*stride), Axes(*(each - 1 for each in dilation))),
        *(Axes(*padding), Axes(*padding), _attributes(layer, adds, outputs)),
    )
    return _bound(description, layer, (x, source), weight, bias, (y, result))


def _attributes(layer: Int8Layer, adds: bool, outputs: int) -> Attributes:
    """Return scales, zero-points and what is behind the sums of products.

    Args:
        layer: what is computed.
        adds: what the result holds before is added.
        outputs: the weight's axes of outputs, as bits.
    """
    attributes, result = Attributes(), layer.result
    attributes.scale(SOURCE)
    attributes.scale(WEIGHT, outputs if layer.weight_scale.numel() > 1 else 0)
    if layer.input.zero_point:
        attributes.shift(SOURCE)
    if result.scale is not None:
        attributes.scale(RESULT)
        if result.zero_point:
            attributes.shift(RESULT)
    steps: list[tuple[Any, ...]] = []
    if adds:
        assert layer.other is not None
        steps.append(("sum", layer.other.scale, layer.other.zero_point, _UINT8))
    if layer.activation != "none":
        steps.append(("eltwise", *_ELTWISE[layer.activation]))
    bounds = _bounds(result)
    if bounds is not None:
        steps.append(("eltwise", _CLIP, *bounds))
    attributes.append(*steps)
    return attributes


def _bounds(result: Result) -> tuple[float, float] | None:
    """Return the least and the greatest real value of a result, where its type does not say it."""
    low, high = result.low, result.high
    if result.scale is None:
        return (
            None if (low, high) == (-math.inf, math.inf) else (max(low, -_MOST), min(high, _MOST))
        )
    if low <= 0 and high >= 255:
        return None
    return (low - result.zero_point) * result.scale, (high - result.zero_point) * result.scale


def _bound(
    description: Description,
    layer: Int8Layer,
    x: tuple[Tensor, Layout],
    weight: Tensor,
    bias: Tensor | None,
    y: tuple[Tensor, Layout],
) -> Primitive:
    """Return the primitive with its operands: scales and bias are read anew at each run."""
    for tensor, dtype in ((weight, torch.int8), (layer.weight_scale, _FLOAT), (bias, _FLOAT)):
        if tensor is not None and (tensor.dtype is not dtype or not tensor.is_cpu):
            raise Refused(f"{tensor.dtype} on {tensor.device}, where {dtype} on the CPU is wanted")
    scale = layer.weight_scale
    if not scale.is_contiguous() or scale.numel() not in (1, len(layer.weight_integers)):
        raise Refused(f"scales of shape {tuple(scale.shape)}")
    layout = description.weight_layout()
    forms = prepacking.forms_of(layer.weight_integers)
    known = [form for each, form in forms if each == layout]  # of another program
    if not known:
        known = [packed(weight, layout)]
        forms.append((layout, known[0]))
    operands: dict[int, Tensor | tuple[Tensor, Layout]] = {
        SOURCE: x,
        WEIGHT: (known[0], layout),
        RESULT: y,
        SCALES | SOURCE: torch.tensor([layer.input.scale], dtype=torch.float32),
        SCALES | WEIGHT: scale,
    }
    if bias is not None:
        operands[BIAS] = bias
    if layer.input.zero_point:
        operands[ZERO_POINTS | SOURCE] = torch.tensor([layer.input.zero_point], dtype=torch.int32)
    if layer.output is not None:
        operands[SCALES | RESULT] = torch.tensor([layer.output.scale], dtype=torch.float32)
        if layer.output.zero_point:
            zero_point = torch.tensor([layer.output.zero_point], dtype=torch.int32)
            operands[ZERO_POINTS | RESULT] = zero_point
    return Primitive(description, operands)
