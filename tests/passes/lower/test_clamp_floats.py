"""ClampFloats ends values where their grid ends, in front of the quantizer."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import Recipe
from fxquant.passes import ClampFloats, ToQdq
from tests.helpers import Net, apply, graph_text, outputs, whole

VALUES = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([-1e30, 1e30, 0.0])])
U8, S8 = torch.uint8, torch.int8


def rounded(function: Callable[[Any], Any], *parameters: Any) -> fx.GraphModule:
    """Return a graph that quantizes what `function` makes of its input, and dequantizes it."""
    operators = torch.ops.quantized_decomposed

    def forward(_: Any, x: Any) -> Any:
        q = operators.quantize_per_tensor.default(function(x), *parameters)
        return operators.dequantize_per_tensor.default(q, *parameters)

    return fxquant.trace(Net(forward))


def test_clamps_in_front_of_the_quantizer() -> None:
    gm = rounded(torch.relu, 0.5, 0, -8, 7, S8)
    assert apply(ClampFloats(), gm)
    q = "quantized_decomposed.quantize_per_tensor.default"
    assert graph_text(gm).replace("_default", "") == cleandoc(f"""
        x = input()
        relu = torch.relu(x)
        clamp = torch.clamp(relu, -4.0, 3.5)
        quantize_per_tensor = {q}(clamp, 0.5, 0, -8, 7, torch.int8)
        dequantize_per_tensor = {q.replace(".q", ".deq")}(quantize_per_tensor, 0.5, 0, -8, 7, \
torch.int8)
        return dequantize_per_tensor
    """)


@pytest.mark.parametrize("scale", [0.1, 0.02, 1 / 3, 6 / 255, 1e-7, 3e4])
@pytest.mark.parametrize(
    ("zero_point", "low", "high", "dtype"),
    [(0, -8, 7, S8), (0, -127, 127, S8), (3, 0, 15, U8), (5, -32, 31, S8)],
)
def test_keeps_the_values(
    scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> None:
    gm = rounded(torch.neg, scale, zero_point, low, high, dtype)
    values = torch.cat([VALUES, VALUES * scale])
    expected = outputs(gm, values)
    assert apply(ClampFloats(), gm)
    assert torch.equal(outputs(gm, values), expected)
    assert not apply(ClampFloats(), gm)


def test_leaves_grids_that_end_with_their_type() -> None:
    for parameters in ((0.1, 0, -128, 127, S8), (0.1, 3, 0, 255, U8)):
        assert not apply(ClampFloats(), rounded(torch.relu, *parameters))


def test_a_clamp_of_the_models_own_does_not_stand_in() -> None:
    gm = rounded(lambda x: torch.clamp(x, -30, 30), 0.5, 0, -8, 7, S8)
    expected = outputs(gm, VALUES)
    assert apply(ClampFloats(), gm)
    assert graph_text(gm).count("torch.clamp(") == 2
    assert torch.equal(outputs(gm, VALUES), expected)


def test_clamps_each_of_several_readers() -> None:
    model = Net(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 8, 8)
    gm = whole(fxquant.quantize(model, [x], Recipe.minmax(activation_bits=4), progress=False))
    apply(ToQdq(), gm)
    expected = outputs(gm, 2 * x)
    assert apply(ClampFloats(), gm)
    assert torch.equal(outputs(gm, 2 * x), expected)
