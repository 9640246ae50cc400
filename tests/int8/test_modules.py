"""Modules on integers against the layers that simulate them.

Both compute in float32, in another order: in one value of a thousand, one that lies half-way
between two integers, they may be one step apart.
"""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxquant.int8 import kernels
from fxquant.int8.modules import (
    Int8Add,
    Int8Conv,
    Int8Linear,
    even_padding,
    why_not_int8,
)
from fxquant.int8.operands import Clamp
from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.numerics.affine import AffineNumbers, Grid
from fxquant.recipe.spec import TensorSpec
from tests.helpers import needs_int8

BYTE = Grid(0, 255)
INPUT, OTHER, OUTPUT = (
    AffineNumbers(0.02, 7, BYTE),
    AffineNumbers(0.03, 100, BYTE),
    AffineNumbers(0.04, 90, BYTE),
)
WEIGHTS = TensorSpec(symmetric=True, per_channel=True)
CLAMPS: list[Clamp] = [None, (0.0, math.inf), (0.0, 1.5)]


def quantized(layer: Layer, spec: TensorSpec = WEIGHTS) -> QuantizedLayer:
    return quantize_layer(layer.eval(), spec)


def integers(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def simulate(
    layer: nn.Module,
    x: Tensor,
    output: AffineNumbers | None = OUTPUT,
    activation: Callable[[Tensor], Tensor] = lambda y: y,
    clamp: Clamp = None,
    other: Tensor | None = None,
) -> Tensor:
    """Return what the layer makes of what the integers stand for, in integers again."""
    with torch.no_grad():
        y: Tensor = layer(kernels.dequantize(x, INPUT.scale, INPUT.zero_point))
    if other is not None:
        y = y + kernels.dequantize(other, OTHER.scale, OTHER.zero_point)
    y = activation(y).clamp(*(clamp or (-math.inf, math.inf)))
    if output is None:
        return y
    return kernels.quantize(y, output.scale, output.zero_point, output.grid.quant_max)


def assert_integers(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype == torch.uint8
    assert actual.shape == expected.shape
    steps = (actual.int() - expected.int()).abs()
    assert steps.max() <= 1
    assert steps.sum() <= actual.numel() / 1000


LAYERS: dict[str, tuple[Callable[[], Layer], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, (1, 2), (0, 1), 2, groups=2), (2, 4, 9, 10)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 9, 10)),
    "conv2d, valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False), (2, 4, 9, 10)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 5, 6, 7)),
    "linear": (lambda: nn.Linear(8, 6), (2, 8)),
    "linear on sequences": (lambda: nn.Linear(8, 6, bias=False), (2, 3, 8)),
}


@needs_int8
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
@pytest.mark.parametrize(
    "spec", [WEIGHTS, TensorSpec(symmetric=True), TensorSpec(bits=4, symmetric=True)], ids=str
)
def test_a_layer_computes_what_it_simulated(kind: str, clamp: Clamp, spec: TensorSpec) -> None:
    make_layer, shape = LAYERS[kind]
    layer, x = quantized(make_layer(), spec), integers(*shape)
    module = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv
    y = module(layer, INPUT, OUTPUT, clamp=clamp)(x)
    assert_integers(y, simulate(layer, x, clamp=clamp))
    torch.testing.assert_close(
        module(layer, INPUT, None, clamp=clamp)(x), simulate(layer, x, None, clamp=clamp)
    )
    unbatched = module(layer, INPUT, OUTPUT, clamp=clamp)(x[0])
    assert torch.equal(unbatched, y[0])


@needs_int8
@pytest.mark.parametrize(
    ("name", "activation"),
    [("swish", F.silu), ("hardswish", F.hardswish), ("gelu", F.gelu), ("tanh", torch.tanh)],
)
def test_a_layer_computes_the_activation_function_behind_it(
    name: str, activation: Callable[[Tensor], Tensor]
) -> None:
    for kind in ("linear",) if name in ("gelu", "tanh") else ("conv2d", "linear"):
        make_layer, shape = LAYERS[kind]
        layer, x = quantized(make_layer()), integers(*shape)
        module = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv
        y = module(layer, INPUT, OUTPUT, name)(x)
        assert_integers(y, simulate(layer, x, activation=activation))


@needs_int8
@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
@pytest.mark.parametrize("keep_other", [True, False])
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"]
)
def test_a_convolution_adds_an_operand(
    clamp: Clamp, keep_other: bool, layout: torch.memory_format
) -> None:
    layer, x = quantized(nn.Conv2d(4, 6, 3, padding=1)), integers(2, 4, 8, 8)
    other = integers(2, 6, 8, 8).contiguous(memory_format=layout)
    expected, before = simulate(layer, x, clamp=clamp, other=other), other.clone()
    module = Int8Conv(layer, INPUT, OUTPUT, "none", clamp, OTHER, keep_other)
    assert_integers(module(x, other), expected)
    if keep_other:
        assert torch.equal(other, before)
    assert_integers(module(x[0], before[0].clone()), expected[0])


@needs_int8
@pytest.mark.parametrize("shape", [(6, 1, 1), (2, 6, 1, 1), (1, 6, 8, 8), (1,), (3, 2, 6, 8, 8)])
def test_a_convolution_adds_an_operand_of_another_shape(shape: tuple[int, ...]) -> None:
    layer, x = quantized(nn.Conv2d(4, 6, 3, padding=1)), integers(2, 4, 8, 8)
    other = integers(*shape)
    before = other.clone()
    module = Int8Conv(layer, INPUT, OUTPUT, "none", (0.0, math.inf), OTHER, keep_other=False)
    expected = simulate(layer, x, clamp=(0.0, math.inf), other=other)
    assert_integers(module(x, other), expected)
    assert torch.equal(other, before)
    if len(shape) == 3:
        assert_integers(module(x[0], other), expected[0])


@needs_int8
def test_a_convolution_with_its_own_input_as_operand() -> None:
    layer, x = quantized(nn.Conv2d(4, 4, 3, padding=1)), integers(2, 4, 8, 8)
    expected = simulate(layer, x, other=x)
    assert_integers(Int8Conv(layer, INPUT, OUTPUT, other=OTHER)(x, x), expected)


@pytest.mark.parametrize("clamp", CLAMPS, ids=str)
def test_an_addition_computes_what_it_simulated(clamp: Clamp) -> None:
    a, b = integers(2, 6, 5, 5), integers(2, 6, 1, 1)
    y = Int8Add(INPUT, OTHER, OUTPUT, clamp)(a, b)
    assert_integers(y, simulate(nn.Identity(), a, clamp=clamp, other=b))


@needs_int8
def test_results_use_no_more_than_their_grid() -> None:
    layer, x = quantized(nn.Linear(8, 6)), integers(50, 8)
    y = Int8Linear(layer, INPUT, AffineNumbers(0.1, 7, Grid(0, 15)))(x)
    assert (y.min(), y.max()) == (0, 15)


REFUSED: dict[str, tuple[Layer, TensorSpec, str]] = {
    "transposed": (
        nn.ConvTranspose2d(4, 4, 2),
        WEIGHTS,
        "there is no int8 kernel for transposed convolutions",
    ),
    "asymmetric": (
        nn.Linear(4, 4),
        TensorSpec(),
        "its weight has zero-points (symmetric=False), and the kernels take none",
    ),
    "reflect": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        WEIGHTS,
        "there is no int8 kernel for padding_mode='reflect'",
    ),
    "same, even": (
        nn.Conv2d(4, 4, (3, 4), padding="same"),
        WEIGHTS,
        "its padding 'same' differs on the two sides",
    ),
    "half": (
        nn.Conv2d(4, 4, 3).half(),
        WEIGHTS,
        "its results are torch.float16, those of the kernels float32",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_says_why_the_kernels_cannot_compute_a_layer(kind: str) -> None:
    layer, spec, reason = REFUSED[kind]
    assert why_not_int8(quantized(layer, spec)) == reason


@pytest.mark.parametrize("kind", LAYERS)
def test_says_nothing_of_layers_that_the_kernels_can_compute(kind: str) -> None:
    assert why_not_int8(quantized(LAYERS[kind][0]())) is None


@pytest.mark.parametrize(
    ("layer", "padding"),
    [
        (nn.Conv2d(1, 1, 3, padding=(1, 2)), (1, 2)),
        (nn.Conv1d(1, 1, 3, padding="valid"), (0,)),
        (nn.Conv2d(1, 1, (3, 5), padding="same", dilation=2), [2, 4]),
        (nn.Conv1d(1, 1, 4, padding="same", dilation=2), [3]),
        (nn.Conv1d(1, 1, 4, padding="same"), None),
    ],
    ids=str,
)
def test_padding_is_the_same_on_both_sides_or_none(layer: Layer, padding: Any) -> None:
    assert even_padding(quantized(layer)) == padding


@needs_int8
def test_a_module_takes_the_numbers_of_another() -> None:
    layer = quantized(nn.Conv2d(4, 6, 3, padding=1))
    module = Int8Conv(layer, INPUT, OUTPUT, "none", (0.0, 1.5), OTHER)
    taking = Int8Conv(layer, OTHER, INPUT, "none", (0.0, 1.5), OUTPUT)
    assert module.numbers() == {
        "input_scale": 0.02, "input_zero_point": 7, "other_scale": 0.03, "other_zero_point": 100,
        "scale": 0.04, "zero_point": 90,
    }  # fmt: skip
    taking.take_numbers(module.numbers())
    x, operand = integers(2, 4, 8, 8), integers(2, 6, 8, 8)
    assert torch.equal(taking(x, operand), module(x, operand))
    assert (taking.input, taking.other, taking.output) == (INPUT, OTHER, OUTPUT)
    assert taking.form() == module.form()


def test_the_form_tells_what_no_numbers_change() -> None:
    conv, linear = quantized(nn.Conv2d(4, 4, 3)), quantized(nn.Linear(4, 4))
    wide = AffineNumbers(0.04, 9, Grid(0, 15))
    modules = (
        Int8Conv(conv, INPUT, OUTPUT),
        Int8Conv(conv, INPUT, None),
        Int8Conv(conv, INPUT, wide),
        Int8Conv(conv, INPUT, OUTPUT, "swish"),
        Int8Conv(conv, INPUT, OUTPUT, clamp=(0.0, 6.0)),
        Int8Conv(conv, INPUT, OUTPUT, other=OTHER),
        Int8Conv(conv, INPUT, OUTPUT, other=OTHER, keep_other=False),
        Int8Conv(quantized(nn.Conv2d(4, 4, 3, padding=1)), INPUT, OUTPUT),
        Int8Conv(quantized(nn.Conv2d(4, 4, 3), TensorSpec(bits=4, symmetric=True)), INPUT, OUTPUT),
        Int8Linear(linear, INPUT, OUTPUT),
        Int8Add(INPUT, OTHER, OUTPUT),
    )
    assert len({module.form() for module in modules}) == len(modules)


@needs_int8
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_compute_the_same(duplicate: Callable[[Any], Any]) -> None:
    x = integers(9, 8)
    module = Int8Linear(quantized(nn.Linear(8, 6)), INPUT, OUTPUT, "gelu")
    expected = module(x)
    assert torch.equal(duplicate(module)(x), expected)


@needs_int8
def test_a_layer_tells_its_weight_in_float() -> None:
    for layer, module in ((nn.Linear(8, 6), Int8Linear), (nn.Conv2d(4, 6, 3), Int8Conv)):
        for spec in (WEIGHTS, TensorSpec(symmetric=True)):
            known = quantized(layer, spec)
            assert torch.equal(module(known, INPUT, None).weight, known.weight)


def test_a_layer_shares_its_integers_and_keeps_what_the_report_tells() -> None:
    layer = quantized(nn.Linear(8, 6))
    module = Int8Linear(layer, INPUT, None)
    assert module.weight_integers is layer.weight_integers
    assert (module.weight_spec, module.weight_sqnr) == (layer.weight_spec, layer.weight_sqnr)
    assert not any(True for _ in module.parameters())


def test_modules_say_what_they_compute() -> None:
    conv, linear = quantized(nn.Conv2d(4, 4, 1)), quantized(nn.Linear(4, 4))
    add = Int8Conv(conv, INPUT, OUTPUT, "none", (0.0, 6.0), OTHER)
    assert add.extra_repr() == "8 bits minmax + relu6 + add → uint8 scale=0.04 zero_point=90"
    swish = Int8Linear(linear, INPUT, None, "swish")
    assert swish.extra_repr() == "8 bits minmax + swish → float32"
    relu = Int8Linear(linear, INPUT, None, clamp=(0.0, math.inf))
    assert relu.extra_repr() == "8 bits minmax + relu → float32"
    assert Int8Add(INPUT, OTHER, OUTPUT).extra_repr() == "→ uint8 scale=0.04 zero_point=90"
