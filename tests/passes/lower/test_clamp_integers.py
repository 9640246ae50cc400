"""ClampIntegers ends integers where their grid ends, and takes ReLUs along."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.passes import ClampIntegers, ToQdq
from tests.helpers import Net, apply, graph_text, outputs, refusals, whole

VALUES = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([-1e30, 1e30, 0.0])])
U8, S8 = torch.uint8, torch.int8
Clamp = tuple[int, int] | None


def rounded(function: Callable[[Any], Any], *parameters: Any) -> fx.GraphModule:
    """Return a graph that quantizes what `function` makes of its input, and dequantizes it."""
    operators = torch.ops.quantized_decomposed

    def forward(_: Any, x: Any) -> Any:
        q = operators.quantize_per_tensor.default(function(x), *parameters)
        return operators.dequantize_per_tensor.default(q, *parameters)

    return fxquant.trace(Net(forward))


def clamp_of(gm: fx.GraphModule) -> Clamp:
    found = [node.args[1:] for node in gm.graph.nodes if node.target is torch.clamp]
    assert len(found) <= 1
    return found[0] if found else None


def test_clamps_to_the_grid_what_onnx_clamps_to_its_type() -> None:
    x = torch.linspace(-8, 7, 512).reshape(2, 4, 8, 8)
    recipe = Recipe.minmax(activation_bits=4)
    gm = whole(fxquant.quantize(nn.Sequential(nn.Conv2d(4, 2, 1)), [x], recipe, progress=False))
    apply(ToQdq(), gm)
    expected = outputs(gm, 2 * x)
    assert apply(ClampIntegers(), gm)
    text = graph_text(gm).replace("_default", "")
    q, dq = "quantized_decomposed.quantize_per", "quantized_decomposed.dequantize_per"
    assert text == cleandoc(f"""
        input_1 = input()
        quantize_per_tensor = {q}_tensor.default(input_1, 1.0, 8, 0, 15, torch.uint8)
        clamp = torch.clamp(quantize_per_tensor, 0, 15)
        dequantize_per_tensor = {dq}_tensor.default(clamp, 1.0, 8, 0, 15, torch.uint8)
        _0_weight_integers = self.0.weight_integers
        _0_weight_scale = self.0.weight_scale
        _0_weight_zero_point = self.0.weight_zero_point
        dequantize_per_channel = {dq}_channel.default(_0_weight_integers, _0_weight_scale, \
_0_weight_zero_point, 0, -128, 127, torch.int8)
        _0_bias = self.0.bias
        _0 = torch.conv2d(dequantize_per_tensor, dequantize_per_channel, _0_bias, (1, 1), (0, 0), \
(1, 1), 1)
        return _0
    """)
    assert torch.equal(outputs(gm, 2 * x), expected)
    assert not apply(ClampIntegers(), gm)


# function of x, quantization parameters, clamp of the integers, is the function still there
CASES: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...], Clamp, bool]] = {
    "signed, 4 bits": (torch.exp, (0.5, 0, -8, 7, S8), (-8, 7), True),
    "ReLU, 4 bits": (torch.relu, (0.5, 0, 0, 15, U8), (0, 15), True),
    "ReLU above the least integer": (torch.relu, (0.1, 3, 0, 255, U8), (3, 255), False),
    "ReLU above it, 4 bits": (F.relu, (0.5, 5, 0, 15, U8), (5, 15), False),
    "ReLU, signed": (lambda x: x.relu(), (0.1, 0, -128, 127, S8), (0, 127), False),
    "ReLU6 past the grid": (F.relu6, (0.02, 0, 0, 255, U8), None, False),
    "ReLU6 at its end": (F.relu6, (6 / 255, 0, 0, 255, U8), None, False),
    "ReLU6 within": (F.relu6, (0.1, 10, 0, 255, U8), (10, 70), False),
    "clamp to a tie": (lambda x: x.clamp(0, 2.5), (1.0, 0, 0, 255, U8), (0, 2), False),
}


@pytest.mark.parametrize(("function", "parameters", "clamp", "stays"), CASES.values(), ids=CASES)
def test_moves_a_relu_that_the_type_does_not_compute(
    function: Callable[[Any], Any], parameters: Any, clamp: Clamp, stays: bool
) -> None:
    gm = rounded(function, *parameters)
    before, expected = len(gm.graph.nodes), outputs(gm, VALUES)
    assert apply(ClampIntegers(), gm)
    assert clamp_of(gm) == clamp
    assert len(gm.graph.nodes) == before + (clamp is not None) - (not stays)
    assert torch.equal(outputs(gm, VALUES), expected)
    assert not apply(ClampIntegers(), gm)


UNTOUCHED: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...]]] = {
    "ReLU that the type computes": (torch.relu, (0.1, 0, 0, 255, U8)),
    "ReLU that the type computes, signed": (torch.relu, (0.1, -128, -128, 127, S8)),
    "another function": (torch.exp, (0.1, 7, 0, 255, U8)),
}


@pytest.mark.parametrize(("function", "parameters"), UNTOUCHED.values(), ids=UNTOUCHED)
def test_leaves(function: Callable[[Any], Any], parameters: Any) -> None:
    assert not apply(ClampIntegers(), rounded(function, *parameters))


def test_leaves_a_relu_that_somebody_else_reads() -> None:
    def forward(_: Any, x: Any) -> Any:
        y = x.relu()
        return y + torch.ops.quantized_decomposed.quantize_per_tensor.default(y, 0.1, 3, 0, 255, U8)

    gm = fxquant.trace(Net(forward))
    assert not apply(ClampIntegers(), gm)
    assert refusals(gm) == {}


def test_deletes_the_module_of_a_relu_that_it_moved() -> None:
    model = Net(
        lambda m, x: m.c(torch.cat([m.relu(m.a(x)), m.b(x)], 1)),  # on one grid, zero inside
        a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(8, 2, 1), relu=nn.ReLU(),
    )  # fmt: skip
    x = torch.randn(2, 4, 8, 8)
    gm = whole(fxquant.quantize(model, [x], Recipe.minmax(), progress=False))
    apply(ToQdq(), gm)
    expected = outputs(gm, 2 * x)
    assert apply(ClampIntegers(), gm)
    assert not hasattr(gm, "relu")
    assert torch.equal(outputs(gm, 2 * x), expected)


def test_clamps_scales_of_each_channel_to_their_grid() -> None:
    x = torch.randn(2, 4, 8, 8)
    recipe = Recipe(activations=TensorSpec(bits=4, per_channel=True))
    gm = whole(fxquant.quantize(nn.Sequential(nn.Conv2d(4, 2, 1)), [x], recipe, progress=False))
    apply(ToQdq(), gm)
    expected = outputs(gm, 2 * x)
    assert apply(ClampIntegers(), gm)
    assert clamp_of(gm) == (0, 15)
    assert torch.equal(outputs(gm, 2 * x), expected)


def test_two_relus_in_a_row_are_moved_at_once() -> None:
    gm = rounded(lambda x: F.relu(F.relu6(x)), 0.05, 20, 0, 255, U8)
    expected = outputs(gm, VALUES)
    assert apply(ClampIntegers(), gm)
    assert clamp_of(gm) == (20, 140)
    assert torch.equal(outputs(gm, VALUES), expected)
    assert not apply(ClampIntegers(), gm)
