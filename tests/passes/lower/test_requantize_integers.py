"""RequantizeIntegers turns integers into those of other parameters, to the same values."""

import pytest
import torch
from torch import nn

import fxquant
from fxquant.int8 import kernels
from fxquant.int8.onednn import why_unavailable
from fxquant.numerics.decibels import sqnr
from fxquant.passes import RequantizeIntegers
from tests.helpers import Net, apply, graph_text, outputs, whole

X = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason="no int8 kernels here")


def test_one_step_takes_the_place_of_two() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.c(torch.cat([y := m.a(x).relu(), y.exp() * 50], 1)) + m.b(y),
        a=nn.Linear(4, 4), b=nn.Linear(4, 2), c=nn.Linear(8, 2),
    )  # fmt: skip
    quantized = whole(fxquant.quantize(model, [X], "minmax"))
    gm = whole(fxquant.lower(quantized))
    (line,) = [line for line in graph_text(gm).splitlines() if "requantize" in line]
    assert line.startswith("quantize_3 = kernels.requantize(quantize_1, ")
    assert sqnr(outputs(quantized, X), outputs(gm, X)) > 100
    assert not apply(RequantizeIntegers(), gm)


def test_the_kernel_computes_what_the_two_do() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    for scale, zero_point in ((0.3, 7), (0.01, 128), (5.0, 0)):
        both = kernels.quantize(kernels.dequantize(x, 0.1, 3), scale, zero_point, 255)
        assert torch.equal(kernels.requantize(x, 0.1, 3, scale, zero_point, 255), both)


def test_what_has_the_same_parameters_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    gm = whole(fxquant.quantize(model, [X], "minmax"))
    (relu,) = [node for node in gm.graph.nodes if node.name == "quantizers__1"]
    with gm.graph.inserting_after(relu):
        again = gm.graph.call_module(str(relu.target))
    relu.replace_all_uses_with(again)
    again.args = (relu,)
    gm.recompile()
    lowered = whole(fxquant.lower(gm))
    assert [node.op for node in lowered.graph.nodes].count("call_function") == 1  # quantize
    assert sqnr(outputs(gm, X), outputs(lowered, X)) > 100
