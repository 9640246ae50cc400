"""SinkClamps lets clamps of channels work on integers, so that layers take activations along."""

from inspect import cleandoc

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import Recipe
from fxquant.int8.modules import Int8Conv
from fxquant.int8.onednn import why_unavailable
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.passes import SinkClamps, SplitQuantizers
from tests.helpers import Net, apply, check_lowering, node, outputs, quantizer, short_text

IMAGES = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 3
INF = float("inf")


def clamped(low: list[float], high: list[float], calls: int = 1) -> fx.GraphModule:
    """Return a graph that clamps three channels and rounds them, to steps of 0.02 from -2 on."""
    clamp = ChannelClamp(torch.tensor(low), torch.tensor(high), -3)
    function = {
        1: lambda m, x: m.q(m.clamp(x)),
        2: lambda m, x: m.q(m.clamp(x)) + m.r(m.clamp(-x)),
        3: lambda m, x: m.q(clamped := m.clamp(x)) + clamped,
    }[calls]
    gm = fxquant.trace(
        Net(function, clamp=clamp, q=quantizer(0.02), r=quantizer(0.03, zero_point=20))
    )
    apply(SplitQuantizers(), gm)
    return gm


def test_bounds_become_the_integers_that_they_are_rounded_to() -> None:
    gm = clamped([-1.0, -INF, 0.0], [1.013, 0.5, INF])
    check_lowering(SinkClamps(), gm, IMAGES)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.02, 100, 255)
        clamp = self.clamp_1(quantize) # ChannelClamp 3 channels, within 0 … 255
        dequantize = kernels.dequantize(clamp, 0.02, 100)
        return dequantize
    """)
    moved = gm.get_submodule("clamp_1")
    assert isinstance(moved, ChannelClamp)
    assert moved.low.tolist() == [50.0, 0.0, 100.0]
    assert moved.high.tolist() == [151.0, 125.0, 255.0]
    assert not hasattr(gm, "clamp")


def test_bounds_at_the_ends_of_the_grid_are_dropped() -> None:
    gm = clamped([-2.0, -3.0, -INF], [3.1, 4.0, INF])
    check_lowering(SinkClamps(), gm, IMAGES)
    assert "ChannelClamp" not in short_text(gm)


def test_a_clamp_called_twice_has_integers_of_each_grid() -> None:
    gm = clamped([0.0, 0.0, 0.0], [1.0, 0.5, 2.0], calls=2)
    check_lowering(SinkClamps(), gm, IMAGES)
    bounds = [each.high.tolist() for each in gm.modules() if isinstance(each, ChannelClamp)]
    assert sorted(bounds) == [[53.0, 37.0, 87.0], [150.0, 125.0, 200.0]]


def test_a_clamp_that_others_read_in_float_stays() -> None:
    gm = clamped([0.0, 0.0, 0.0], [1.0, 0.5, 2.0], calls=3)
    text = short_text(gm)
    assert not apply(SinkClamps(), gm)
    assert short_text(gm) == text


def mobile() -> nn.Sequential:
    """Return depthwise and other convolutions with ReLU6s, channels of very different size."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16, padding=1)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.mul_(torch.logspace(-1, 1, 16).view(-1, 1, 1, 1))
    return nn.Sequential(
        first, nn.ReLU6(), second, nn.ReLU6(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@pytest.mark.skipif(why_unavailable() is not None, reason="needs int8 kernels")
def test_an_equalized_mobile_network_has_no_float_between_its_layers() -> None:
    model = mobile()
    quantized = fxquant.quantize(model, [IMAGES], Recipe(equalization=True), example_inputs=IMAGES)
    assert any(isinstance(each, ChannelClamp) for each in quantized.modules())
    lowered = fxquant.lower(quantized, example_inputs=IMAGES)
    assert isinstance(lowered, fx.GraphModule)
    layers = [each for each in lowered.modules() if isinstance(each, Int8Conv)]
    assert len(layers) == 3
    assert all(each.output is not None for each in layers)
    step = max(float(each.scale) for each in quantized.modules() if isinstance(each, FakeQuantize))
    difference = (outputs(lowered, IMAGES) - outputs(quantized, IMAGES)).abs().max()
    assert difference <= 1.5 * step


def test_it_is_named_as_what_it_computes() -> None:
    gm = clamped([0.0, 0.0, 0.0], [1.0, 0.5, 2.0])
    apply(SinkClamps(), gm)
    assert node(gm, "clamp").meta["fxquant"].value_of == "q"
