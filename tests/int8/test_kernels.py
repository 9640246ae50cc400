"""The kernels against slow references: sums in float64 on integers, which are exact.

Kernels scale and add in float32. So a result is the nearest integer to the exact value, ties to
even, or next to it where that value lies within 1e-4 of the middle between the two.
"""

import copy
import functools
import gc
import io
import math
import pickle
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxquant.int8 import kernels, onednn, prepacking
from fxquant.int8.kernels import add
from fxquant.int8.onednn import conv, conv_add, linear
from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from fxquant.numerics.affine import Affine, Grid
from tests.helpers import needs_int8, relative_error

IN_FLOAT = Result.of(None)
ONES = Result(1.0, 0, 0, 255)
CONVOLUTIONS: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}


def integers(*shape: int, bits: int = 8) -> Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


def weights(*shape: int, bits: int = 8) -> Tensor:
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def every_other(x: Tensor) -> Tensor:
    """Return the values of `x` with a gap behind each in memory."""
    return x.repeat_interleave(2, -1)[..., ::2]


def transposed(x: Tensor) -> Tensor:
    """Return the values of `x` with the first two axes exchanged in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


ConvArguments = tuple[Uint8, Weight, Geometry]
LinearArguments = tuple[Uint8, Weight]


def conv_arguments(
    dims: int = 2,
    *,
    inputs: int = 8,
    outputs: int = 16,
    width: int = 3,
    geometry: tuple[int, int, int] = (1, 0, 1),
    groups: int = 1,
    zero_point: int = 7,
    bias: bool = True,
    per_channel: bool = True,
    bits: int = 8,
    batch: int = 2,
) -> ConvArguments:
    """Return what all kernels of convolutions take first; `geometry`: stride, padding, dilation."""
    x = integers(batch, inputs, *range(9, 9 + dims), bits=bits)
    weight = weights(outputs, inputs // groups, *[width] * dims, bits=bits)
    scale = torch.rand(outputs if per_channel else 1) + 0.1
    stride, padding, dilation = ((value,) * dims for value in geometry)
    return (
        Uint8(x, 0.02, zero_point),
        Weight(weight, scale, 10 * torch.randn(outputs) if bias else None),
        Geometry(stride, padding, dilation, groups),
    )


def conv_exactly(x: Uint8, weight: Weight, geometry: Geometry) -> Tensor:
    """Return the convolution in float64; zeros at the border, whatever the zero-point."""
    values, rows = x.values.double() - x.zero_point, weight.integers.double()
    sums = CONVOLUTIONS[rows.dim()](values, rows, None, *geometry)
    per_output = (-1, *[1] * (rows.dim() - 2))
    y: Tensor = sums * (x.scale * weight.scale.double()).reshape(per_output)
    return y if weight.bias is None else y + weight.bias.double().reshape(per_output)


def linear_arguments(*shape: int, outputs: int = 6, bias: bool = True) -> LinearArguments:
    x, weight = integers(*shape), weights(outputs, shape[-1])
    scale = torch.rand(outputs)
    return Uint8(x, 0.002, 7), Weight(weight, scale, torch.randn(outputs) if bias else None)


def linear_exactly(x: Uint8, weight: Weight) -> Tensor:
    y = F.linear(x.values.double() - x.zero_point, weight.integers.double())
    y = y * (x.scale * weight.scale.double())
    return y if weight.bias is None else y + weight.bias.double()


def spread(y: Tensor) -> Result:
    """Return a result whose 8 bits are spread over the middle nine tenths of `y`."""
    low, high = y.flatten().kthvalue(max(y.numel() // 20, 1))[0], y.quantile(0.95)
    affine = Affine.over(low, high, Grid(0, 255)).numbers()
    return Result(affine.scale, affine.zero_point, 0, 255)


def assert_nearest(actual: Tensor, exact: Tensor, result: Result) -> None:
    assert result.scale is not None
    steps = (exact / result.scale + result.zero_point).clamp(result.low, result.high)
    assert actual.dtype == torch.uint8
    assert actual.shape == steps.shape
    assert (actual.double() - steps).abs().max() <= 0.5 + 1e-4


def assert_conv(arguments: ConvArguments, activation: str = "none") -> None:
    """Check a convolution with its result in uint8 and in float32."""
    exact = ACTIVATIONS[activation](conv_exactly(*arguments))
    result = spread(exact)
    assert_nearest(conv(*arguments, activation, result), exact, result)
    in_float = conv(*arguments, activation, IN_FLOAT)
    assert relative_error(in_float, exact.float()) < 1e-6


@needs_int8
@pytest.mark.parametrize("zero_point", [0, 7, 255])
@pytest.mark.parametrize("geometry", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_conv_rounds_the_exact_sum(
    dims: int, groups: int, geometry: tuple[int, int, int], zero_point: int
) -> None:
    assert_conv(
        conv_arguments(dims, groups=groups, geometry=geometry, zero_point=zero_point, outputs=8)
    )


@needs_int8
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"per_channel": False},
        {"per_channel": False, "groups": 4},
        {"width": 1},
        {"inputs": 3, "outputs": 5},
        {"outputs": 1},
        {"bits": 4},
        {"bits": 2},
        {"batch": 1},
    ],
    ids=str,
)
def test_conv_of_every_shape(dims: int, options: dict[str, Any]) -> None:
    assert_conv(conv_arguments(dims, **options))


@needs_int8
def test_conv_takes_strides_and_paddings_that_differ_by_axis() -> None:
    x, weight, _ = conv_arguments()
    assert_conv((x, weight, Geometry((2, 1), (0, 2), (1, 2), groups=1)))


@needs_int8
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last, every_other])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"per_channel": False}, {"batch": 0}])
def test_conv_of_one_position_is_a_product(
    layout: Callable[[Tensor], Tensor], stride: tuple[int, int], options: dict[str, Any]
) -> None:
    x, weight, geometry = conv_arguments(width=1, **options)
    x = x._replace(values=layout(x.values))
    arguments = (x, weight, geometry._replace(stride=stride))
    if options.get("batch") == 0:
        y = conv(*arguments, "none", ONES)
        assert y.shape == conv_exactly(*arguments).shape
        return
    assert_conv(arguments)
    assert_conv(arguments, "swish")
    product = conv_exactly(*arguments)
    other = integers(*product.shape)
    exact = product + 0.3 * (other.double() - 100)
    y = conv_add(*arguments, Uint8(layout(other), 0.3, 100), spread(exact))
    assert_nearest(y, exact, spread(exact))


@needs_int8
@pytest.mark.parametrize("activation", ["swish", "hardswish"])
def test_conv_computes_the_activation_before_it_rounds(activation: str) -> None:
    assert_conv(conv_arguments(), activation)


@needs_int8
@pytest.mark.parametrize("layout", [channels_last, every_other, transposed])
@pytest.mark.parametrize("groups", [1, 8])
def test_conv_reads_any_layout(layout: Callable[[Tensor], Tensor], groups: int) -> None:
    x, weight, geometry = conv_arguments(groups=groups)
    assert_conv((x._replace(values=layout(x.values)), weight, geometry))
    assert_conv((x, weight._replace(integers=layout(weight.integers)), geometry))


@needs_int8
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_conv_holds_the_result_within_its_bounds(dims: int) -> None:
    arguments = conv_arguments(dims)
    exact = conv_exactly(*arguments)
    whole = spread(exact)
    zero_point = whole.zero_point
    for low, high in ((zero_point, 255), (zero_point, zero_point + 9), (0, 15)):
        result = whole._replace(low=low, high=high)
        y = conv(*arguments, "none", result)
        assert_nearest(y, exact, result)
        assert (y.min().item(), y.max().item()) == (low, high)
    y = conv(*arguments, "none", Result(None, 0, 0.0, 6.0))
    assert relative_error(y, exact.clamp(0, 6).float()) < 1e-6


@needs_int8
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("y_scale", [0.1, None])
def test_conv_of_an_empty_batch_is_empty(dims: int, y_scale: float | None) -> None:
    arguments = conv_arguments(dims, batch=0)
    y = conv(*arguments, "none", Result(y_scale, 0, 0, 255))
    assert y.shape == conv_exactly(*arguments).shape
    assert y.dtype == (torch.float32 if y_scale is None else torch.uint8)


@needs_int8
def test_sums_are_exact_and_do_not_saturate() -> None:
    # Half-way the sum is 255 · 127 · 2048 > 2²⁵, where float32 counts in steps of 8. And the first
    # two products overflow the int16 that kernels without VNNI add them in.
    x = torch.full((1, 4096), 255, dtype=torch.uint8)
    weight = torch.full((1, 4096), 127, dtype=torch.int8)
    weight[0, 2048:] = -127
    weight[0, -1] = -126
    y = linear(Uint8(x, 1.0, 0), Weight(weight, torch.ones(1), None), "none", IN_FLOAT)
    assert y.item() == 255
    weight = torch.full((1, 2), 127, dtype=torch.int8)
    y = linear(Uint8(x[:, :2], 1.0, 0), Weight(weight, torch.ones(1), None), "none", IN_FLOAT)
    assert y.item() == 2 * 255 * 127


@needs_int8
def test_results_far_off_the_grid_saturate() -> None:
    for kernel in (
        functools.partial(conv, *conv_arguments(), "none"),
        functools.partial(linear, *linear_arguments(9, 64), "none"),
    ):
        exact = kernel(IN_FLOAT)
        y = kernel(Result(1e-12, 9, 0, 255))
        assert torch.equal(y, torch.where(exact > 0, 255, 0).to(torch.uint8))


@needs_int8
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last, every_other, transposed])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("options", [{}, {"zero_point": 0, "bias": False}, {"outputs": 8}], ids=str)
def test_conv_add_rounds_the_exact_sum(
    layout: Callable[[Tensor], Tensor], groups: int, options: dict[str, Any]
) -> None:
    arguments = conv_arguments(groups=groups, geometry=(1, 1, 1), **options)
    product = conv_exactly(*arguments)
    other, other_scale = integers(*product.shape), product.std().item() / 60
    exact = product + other_scale * (other.double() - 100)
    whole = spread(exact)
    zero_point = whole.zero_point
    for low, high in ((0, 255), (zero_point, 255), (zero_point, zero_point + 20)):
        operand, result = layout(other.clone()), whole._replace(low=low, high=high)
        y = conv_add(*arguments, Uint8(operand, other_scale, 100), result)
        assert_nearest(y, exact, result)


@needs_int8
@pytest.mark.parametrize("size", [(1, 8), (16, 3)], ids=["one channel", "one position"])
def test_conv_add_of_shapes_whose_layout_is_ambiguous(size: tuple[int, int]) -> None:
    outputs, width = size
    x, weight = integers(2, 4, width, width), weights(outputs, 4, width, width)
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    arguments = (Uint8(x, 0.02, 3), Weight(weight, torch.rand(outputs), None), geometry)
    exact = conv_exactly(*arguments)
    other = integers(*exact.shape)
    exact = exact + 0.5 * (other.double() - 9)
    y = conv_add(*arguments, Uint8(other, 0.5, 9), spread(exact))
    assert_nearest(y, exact, spread(exact))


@needs_int8
def test_conv_add_takes_a_broadcast_operand_and_an_empty_batch() -> None:
    x, weight, geometry = conv_arguments()
    product = conv_exactly(x, weight, geometry)
    other = integers(2, 16, 1, 1).expand(product.shape)
    exact = product + other.double()
    y = conv_add(x, weight, geometry, Uint8(other, 1.0, 0), spread(exact))
    assert_nearest(y, exact, spread(exact))
    x = x._replace(values=x.values[:0])
    y = conv_add(x, weight, geometry, Uint8(other[:0], 1.0, 0), spread(exact))
    assert y.shape == (0, *product.shape[1:])


@needs_int8
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(9, 32), (2, 3, 32), (2, 3, 4, 32), (32,), (5, 7), (3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_rounds_the_exact_sum(activation: str, shape: tuple[int, ...], bias: bool) -> None:
    arguments = linear_arguments(*shape, bias=bias)
    exact = ACTIVATIONS[activation](linear_exactly(*arguments))
    result = spread(exact)
    assert_nearest(linear(*arguments, activation, result), exact, result)
    in_float = linear(*arguments, activation, IN_FLOAT)
    assert relative_error(in_float, exact.float()) < 2e-6


@needs_int8
@pytest.mark.parametrize("layout", [every_other, transposed, lambda x: x[:1].expand(x.shape)])
def test_linear_reads_any_layout(layout: Callable[[Tensor], Tensor]) -> None:
    for shape in ((9, 32), (4, 9, 32)):
        x, weight = linear_arguments(*shape)
        for arguments in (
            (x._replace(values=layout(x.values)), weight),
            (x, weight._replace(integers=layout(weight.integers))),
        ):
            exact = linear_exactly(*arguments)
            y = linear(*arguments, "none", spread(exact))
            assert_nearest(y, exact, spread(exact))


@needs_int8
def test_linear_takes_one_scale_and_bounds() -> None:
    x, weight = linear_arguments(9, 32)
    weight = weight._replace(scale=torch.tensor([0.3]))
    exact = linear_exactly(x, weight)
    result = spread(exact)
    result = result._replace(low=result.zero_point, high=15)
    assert_nearest(linear(x, weight, "none", result), exact, result)


@needs_int8
@pytest.mark.parametrize("shape", [(0, 32), (0, 3, 32), (2, 0, 32)])
@pytest.mark.parametrize("y_scale", [0.1, None])
def test_linear_of_an_empty_batch_is_empty(shape: tuple[int, ...], y_scale: float | None) -> None:
    y = linear(*linear_arguments(*shape), "none", Result(y_scale, 0, 0, 255))
    assert y.shape == (*shape[:-1], 6)


SHAPES = [
    ((2, 8, 7, 7), (2, 8, 7, 7)),
    ((2, 8, 7, 7), (8, 1, 1)),
    ((8, 1, 1), (2, 8, 7, 7)),
    ((3, 1), (1, 4)),
    ((40,), (40,)),
    ((), ()),
    ((0, 8), (0, 8)),
    ((2, 3, 4, 5, 6), (2, 3, 4, 5, 6)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
@pytest.mark.parametrize("bounds", [(0, 255), (60, 255), (60, 90), (0, 15)])
def test_add_rounds_the_exact_sum(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], bounds: tuple[int, int]
) -> None:
    a, b = integers(*a_shape), integers(*b_shape)
    before = a.clone(), b.clone()
    y = add(Uint8(a, 0.021, 5), Uint8(b, 0.037, 100), Result(0.03, 60, *bounds))
    exact = 0.021 * (a.double() - 5) + 0.037 * (b.double() - 100)
    steps = (exact / 0.03 + 60).clamp(*bounds)
    assert y.shape == steps.shape
    assert ((y.double() - steps).abs() <= 0.5 + 1e-4).all()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("layout", [channels_last, every_other, transposed])
def test_add_reads_any_layout(layout: Callable[[Tensor], Tensor]) -> None:
    a, b = Uint8(integers(2, 8, 5, 5), 0.02, 3), Uint8(integers(2, 8, 5, 5), 0.03, 4)
    result = Result(0.05, 9, 0, 255)
    expected = add(a, b, result)
    assert torch.equal(add(a._replace(values=layout(a.values)), b, result), expected)
    assert torch.equal(add(a, b._replace(values=layout(b.values)), result), expected)
    assert_nearest(add(a, a, result), 0.04 * (a.values.double() - 3), result)


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last, every_other, transposed])
@pytest.mark.parametrize(
    "geometry",
    [
        ([2, 2], [2, 2], [0, 0], [1, 1], False),
        ([3, 3], [2, 2], [1, 1], [1, 1], False),
        ([3, 2], [2, 3], [1, 0], [1, 1], True),
        ([3, 3], [1, 1], [1, 1], [2, 2], False),
    ],
    ids=str,
)
def test_max_pool2d_pads_with_what_never_wins(
    layout: Callable[[Tensor], Tensor], geometry: tuple[Any, ...]
) -> None:
    x = layout(integers(2, 3, 9, 10))
    expected = F.max_pool2d(x.double(), *geometry)
    assert torch.equal(kernels.max_pool2d(x, *geometry).double(), expected)
    assert torch.equal(kernels.max_pool2d(x[1], *geometry).double(), expected[1])  # no batch
    assert kernels.max_pool2d(x[:0], *geometry).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize(
    ("shape", "dims", "keepdim"),
    [
        ((2, 8, 7, 7), [-2, -1], True),
        ((2, 8, 7, 7), [2, 3], False),
        ((2, 8, 7), [1], False),
        ((8, 7, 7), [-2, -1], True),
        ((1, 2, 300, 300), [-2, -1], True),  # sums above 2²⁴, which float32 cannot hold
        ((0, 8, 7, 7), [-2, -1], True),
    ],
)
def test_average_rounds_the_exact_mean(
    shape: tuple[int, ...], dims: list[int], keepdim: bool
) -> None:
    x = integers(*shape)
    for zero_point, ratio, y_zero_point, y_max in (
        (0, 1.0, 0, 255),
        (100, 2.5, 40, 255),
        (3, 0.1, 1, 15),
    ):
        y = kernels.average(x, zero_point, dims, keepdim, ratio, y_zero_point, y_max)
        mean = (x.double() - zero_point).mean(dims, keepdim=keepdim)
        steps = (ratio * mean + y_zero_point).clamp(0, y_max)
        assert y.shape == steps.shape
        assert ((y.double() - steps).abs() <= 0.5 + 1e-4).all()


def test_average_takes_ties_to_even() -> None:
    x = torch.tensor([[0, 1], [1, 2], [2, 3]], dtype=torch.uint8)
    assert kernels.average(x, 0, [1], False, 1.0, 0, 255).tolist() == [0, 2, 2]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_is_equation_1(bits: int) -> None:
    x = 3 * torch.randn(1000)
    affine = Affine.over(torch.tensor(-2.0), torch.tensor(3.0), Grid(0, 2**bits - 1))
    known = affine.numbers()
    y = kernels.quantize(x, known.scale, known.zero_point, known.grid.quant_max)
    assert torch.equal(y.float(), affine.quantize(x))
    assert kernels.dequantize(y, known.scale, known.zero_point).dtype == torch.float32


def test_quantize_takes_ties_to_even_and_everything_to_the_grid() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, -1.5, math.inf, -math.inf, 1e30])
    assert kernels.quantize(x, 1.0, 2, 15).tolist() == [2, 4, 2, 0, 15, 0, 15]
    assert kernels.quantize(x.double(), 1.0, 2, 15).tolist() == [2, 4, 2, 0, 15, 0, 15]
    assert x[0] == 0.5  # not changed in place


def test_quantize_takes_nan_for_0_and_says_so() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf, math.nan])
    message = (
        "2 of 5 values to be quantized are NaN: integers have none, and compute with 0 instead"
    )
    with pytest.warns(RuntimeWarning, match=message):
        assert kernels.quantize(x, 0.1, 7, 15).tolist() == [15, 7, 15, 0, 7]
    assert kernels.quantize(x[[0, 2, 3]], 0.1, 7, 15).tolist() == [15, 15, 0]


def test_dequantize_is_equation_4_for_every_integer() -> None:
    q = torch.arange(256, dtype=torch.uint8)
    expected = (torch.arange(256) - 77).float() * torch.tensor(0.031)
    assert torch.equal(kernels.dequantize(q, torch.tensor(0.031).item(), 77), expected)


def test_widen_and_narrow_are_inverse() -> None:
    q = channels_last(integers(2, 3, 4, 5))
    wide = kernels.widen(q, 77)
    assert torch.equal(wide.double(), q.double() - 77)
    assert torch.equal(kernels.narrow(wide, 1.0, 77, 0, 255), q)
    assert wide.is_contiguous(memory_format=torch.channels_last)


@needs_int8
def test_a_weight_is_packed_once_for_each_geometry() -> None:
    x, weight, geometry = conv_arguments()
    conv(x, weight, geometry, "none", IN_FLOAT)
    (first,) = prepacking._PACKED[weight.integers].forms.values()
    conv(x._replace(values=x.values[:1]), weight, geometry, "none", IN_FLOAT)
    (again,) = prepacking._PACKED[weight.integers].forms.values()
    assert again is first
    assert_conv((x, weight, geometry._replace(padding=(1, 1))))
    assert len(prepacking._PACKED[weight.integers].forms) == 2


def write_in_inference_mode(integers: Tensor, values: Tensor) -> None:
    with torch.inference_mode():
        integers.copy_(values)


WRITERS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy_": lambda integers, values: integers.copy_(values),
    "data": lambda integers, values: integers.data.copy_(values),
    "a view of it": lambda integers, values: integers.view(-1)[:1].copy_(values.view(-1)[:1]),
    "inference mode": write_in_inference_mode,
    "a state dict": lambda integers, values: integers.detach().copy_(values),
    "NumPy": lambda integers, values: np.copyto(integers.numpy(), values.numpy()),
}


def in_own_memory(integers: Tensor) -> Tensor:
    return integers


def made_in_inference_mode(integers: Tensor) -> Tensor:
    with torch.inference_mode():
        return integers.clone()


def loaded_from_a_file(integers: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(integers, file)
    file.seek(0)
    loaded: Tensor = torch.load(file)
    return loaded


PLACES = [in_own_memory, made_in_inference_mode, loaded_from_a_file, Tensor.share_memory_]


@needs_int8
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("placed", PLACES, ids=lambda place: place.__name__)
def test_a_weight_that_is_changed_is_packed_anew(
    writer: str, placed: Callable[[Tensor], Tensor]
) -> None:
    if placed is made_in_inference_mode and writer in ("copy_", "a view of it", "a state dict"):
        pytest.skip("PyTorch refuses to write")
    x, weight, geometry = conv_arguments()
    x_2, weight_2 = linear_arguments(9, 32)
    weight, weight_2 = (
        each._replace(integers=placed(each.integers)) for each in (weight, weight_2)
    )
    for _ in range(2):
        y, y_2 = (
            conv(x, weight, geometry, "none", IN_FLOAT),
            linear(x_2, weight_2, "none", IN_FLOAT),
        )
        assert relative_error(y, conv_exactly(x, weight, geometry).float()) < 1e-6
        assert relative_error(y_2, linear_exactly(x_2, weight_2).float()) < 1e-6
        for integers in (weight.integers, weight_2.integers):
            WRITERS[writer](integers, ~integers)


@needs_int8
@pytest.mark.parametrize("reader", [pickle.dumps, Tensor.numpy, Tensor.data_ptr, copy.deepcopy])
def test_a_weight_that_is_only_read_is_not_packed_anew(reader: Callable[[Tensor], Any]) -> None:
    x, weight = linear_arguments(9, 32)
    linear(x, weight, "none", IN_FLOAT)
    (first,) = prepacking._PACKED[weight.integers].forms.values()
    reader(weight.integers)
    linear(x, weight, "none", IN_FLOAT)
    (again,) = prepacking._PACKED[weight.integers].forms.values()
    assert again is first


@needs_int8
def test_scales_may_change_without_packing() -> None:
    x, weight, geometry = conv_arguments(bias=False)
    before = conv(x, weight, geometry, "none", IN_FLOAT)
    weight = weight._replace(scale=2 * weight.scale)
    after = conv(x, weight, geometry, "none", IN_FLOAT)
    torch.testing.assert_close(after, 2 * before)
    x, weight = linear_arguments(9, 32, bias=False)
    before = linear(x, weight, "none", IN_FLOAT)
    after = linear(x, weight._replace(scale=2 * weight.scale), "none", IN_FLOAT)
    torch.testing.assert_close(after, 2 * before)


@needs_int8
def test_a_packed_weight_is_freed_with_the_weight() -> None:
    gc.collect()
    number = len(prepacking._PACKED)
    arguments = linear_arguments(9, 32)
    linear(*arguments, "none", IN_FLOAT)
    assert len(prepacking._PACKED) == number + 1
    del arguments
    gc.collect()
    assert len(prepacking._PACKED) == number


@needs_int8
def test_weights_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        arguments = conv_arguments()
        assert_conv(arguments)
        assert_conv(arguments)


def test_fx_traces_each_step_on_integers_as_one_node() -> None:
    def steps(x: Any) -> Any:
        y = kernels.quantize(x, 0.1, 0, 255)
        y = kernels.max_pool2d(y, [2, 2], [2, 2], [0, 0], [1, 1], False)
        y = kernels.narrow(kernels.widen(y, 0), 1.0, 0, 0, 255)
        return kernels.dequantize(kernels.average(y, 0, [-1], True, 1.0, 0, 255), 0.1, 0)

    graph = fx.symbolic_trace(steps).graph
    names = ["quantize", "max_pool2d", "widen", "narrow", "average", "dequantize"]
    assert [node.name for node in graph.nodes] == ["x", *names, "output"]


def test_names_the_processor_that_is_none() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "arm64")
        assert onednn.why_unavailable() == "the processor is arm64, not x86-64"


def test_says_where_onednn_or_vnni_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn.why_unavailable() == "this build of PyTorch has no oneDNN"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert onednn.why_unavailable() == (
        "the processor has no VNNI instructions, and without them int8 sums saturate"
    )
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert onednn.why_unavailable() is None
    # A version of PyTorch that does not tell.
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert "no VNNI" in str(onednn.why_unavailable())
