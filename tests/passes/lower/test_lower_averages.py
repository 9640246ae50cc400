"""LowerAverages: averages between quantizers work on integers."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.graph.records import value_of
from fxquant.int8.integers import affine_of
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Grid
from fxquant.passes import LowerAverages, SinkDequantize, SplitQuantizers
from tests.helpers import (
    Net,
    apply,
    check_lowering,
    graph_text,
    node,
    outputs,
    quantizer,
    short_text,
)

Function = Callable[[Any, Any], Any]
IMAGES = torch.linspace(-3, 4, 2 * 3 * 6 * 7).reshape(2, 3, 6, 7)


def on_integers(
    function: Function, out: FakeQuantize | None = None, **parts: Any
) -> fx.GraphModule:
    """Return the graph of `function`, in which `m.q` and `m.out` are quantizers."""
    out = quantizer(0.013, 120) if out is None else out
    gm = fxquant.trace(Net(function, q=quantizer(0.02), out=out, **parts))
    apply(SplitQuantizers(), gm)
    apply(SinkDequantize(), gm)
    return gm


def check(gm: fx.GraphModule, x: Tensor = IMAGES) -> None:
    check_lowering(LowerAverages(), gm, x)


def test_a_mean_of_whole_axes_is_a_sum_of_integers() -> None:
    gm = on_integers(lambda m, x: m.out(m.pool(m.q(x))), pool=nn.AdaptiveAvgPool2d(1))
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 100, 255)
        dequantize = kernels.dequantize(quantize, 0.02, 100)
        pool = self.pool(dequantize) # AdaptiveAvgPool2d
        quantize_1 = kernels.quantize(pool, 0.013, 120, 255)
        dequantize_1 = kernels.dequantize(quantize_1, 0.013, 120)
        return dequantize_1
    """)
    check(gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 100, 255)
        pool = kernels.average(quantize, 100, [-2, -1], True, 1.538, 120, 255)
        dequantize_1 = kernels.dequantize(pool, 0.013, 120)
        return dequantize_1
    """)
    assert value_of(node(gm, "pool")) == "out"
    assert affine_of(node(gm, "pool")) == quantizer(0.013, 120).affine.numbers()


def test_an_average_over_windows_works_on_wide_integers() -> None:
    gm = on_integers(lambda m, x: m.out(m.pool(m.q(x))), pool=nn.AvgPool2d(2))
    check(gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 100, 255)
        widen = kernels.widen(quantize, 100)
        pool = self.pool(widen) # AvgPool2d
        quantize_1 = kernels.narrow(pool, 1.538, 120, 0, 255)
        dequantize_1 = kernels.dequantize(quantize_1, 0.013, 120)
        return dequantize_1
    """)
    assert value_of(node(gm, "pool")) == ""  # in steps, not in the units of the model
    assert value_of(node(gm, "quantize_1")) == "out"


MEANS: dict[str, Function | nn.Module] = {
    ".mean((2, 3))": lambda m, x: x.mean((2, 3)),
    ".mean(1, True)": lambda m, x: x.mean(1, True),
    "torch.mean": lambda m, x: torch.mean(x, dim=[-1], keepdim=True),
    ".mean(dtype)": lambda m, x: x.mean((2, 3), dtype=torch.float32),
    "F.adaptive_avg_pool2d": lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)),
    "no batch": lambda m, x: F.adaptive_avg_pool2d(x[:, 0], 1),
}
WINDOWS: dict[str, Function | nn.Module] = {
    "AvgPool2d, padded": nn.AvgPool2d(3, 2, 1),
    "AvgPool2d, padding not counted": nn.AvgPool2d(3, 2, 1, True, count_include_pad=False),
    "AvgPool2d, own divisor": nn.AvgPool2d(2, divisor_override=3),
    "F.avg_pool2d": lambda m, x: F.avg_pool2d(x, 3, 1, 1),
    "AvgPool1d": lambda m, x: F.avg_pool1d(x.flatten(2), 2),
    "AvgPool3d": nn.AvgPool3d(2),
    "AdaptiveAvgPool1d": lambda m, x: F.adaptive_avg_pool1d(x.flatten(2), 1),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((2, None)),
    ".mean()": lambda m, x: x.mean(),
    ".mean(axis)": lambda m, x: x.mean(axis=1),
    ".mean(computed)": lambda m, x: x.mean(x.dim() - 1),
}  # fmt: skip


def applied(call: Any) -> Function:
    if isinstance(call, nn.Module):
        return lambda m, x: m.out(m.call(m.q(x)))
    return lambda m, x: m.out(call(m, m.q(x)))


@pytest.mark.parametrize("call", MEANS.values(), ids=MEANS)
def test_lowers_every_mean_to_a_kernel(call: Any) -> None:
    gm = on_integers(applied(call), call=call)
    check(gm)
    assert graph_text(gm).count("kernels.average(") == 1


@pytest.mark.parametrize("call", WINDOWS.values(), ids=WINDOWS)
def test_lowers_every_average_over_windows(call: Any) -> None:
    gm = on_integers(applied(call), call=call)
    check(gm)
    assert "kernels.average(" not in graph_text(gm)
    assert graph_text(gm).count("kernels.widen(") == graph_text(gm).count("kernels.narrow(") == 1


def test_a_mean_stays_on_its_grid() -> None:
    gm = on_integers(lambda m, x: m.out(m.q(x).mean(1)), quantizer(0.1, 5, Grid(0, 15)))
    check(gm)
    assert short_text(gm).count(", 5, 15)") == 1
    assert outputs(gm, 100 * IMAGES).max().item() == pytest.approx(1.0)


def test_an_average_may_read_a_tensor_that_others_read_in_float() -> None:
    gm = on_integers(lambda m, x: m.out((y := m.q(x)).mean((2, 3), True)) * y.exp())
    check(gm)
    assert graph_text(gm).count("kernels.average(quantize,") == 1


NOT_LOWERED: dict[str, Function] = {
    "result in float": lambda m, x: m.q(x).mean(1),
    "input in float": lambda m, x: m.out(x.mean(1)),
    "read by others too": lambda m, x: m.out(y := m.q(x).mean(1)) * y,
    "a sum": lambda m, x: m.out(m.q(x).sum(1)),
    "sigmoid behind": lambda m, x: m.out(m.q(x).mean(1).sigmoid()),
}


@pytest.mark.parametrize("function", NOT_LOWERED.values(), ids=NOT_LOWERED)
def test_leaves_all_other_averages(function: Function) -> None:
    gm = on_integers(function)
    before = graph_text(gm)
    assert not apply(LowerAverages(), gm)
    assert graph_text(gm) == before
