"""Primitives of layers are right, and wrong ones are found out."""

import sys

import pytest
import torch
from torch import nn

import fxquant
from fxquant.int8 import Int8Conv, Int8Layer
from fxquant.programs import layers, primitives, why_unavailable
from fxquant.programs.primitives import WEIGHT, Layout, Primitive
from tests.helpers import needs_int8

pytestmark = [
    needs_int8,
    pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable())),
]
LAYERS = {
    "3x3": (nn.Conv2d(8, 16, 3, padding=1), (2, 8, 9, 9)),
    "1x1": (nn.Conv2d(8, 16, 1), (2, 8, 9, 9)),
    "strided": (nn.Conv2d(8, 16, 1, stride=2), (2, 8, 9, 9)),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16, dilation=2), (1, 16, 9, 9)),
    "groups": (nn.Conv2d(8, 16, 3, groups=2, bias=False), (3, 8, 9, 9)),
    "1d": (nn.Conv1d(4, 8, 5, padding=2), (2, 4, 30)),
    "3d": (nn.Conv3d(4, 8, 3), (1, 4, 5, 6, 7)),
    "linear": (nn.Linear(12, 20), (5, 12)),
    "tokens": (nn.Linear(12, 20), (2, 5, 12)),
}


def lowered(name: str, rounds: bool) -> tuple[Int8Layer, torch.Tensor]:
    """Return a layer on integers, and an input; its result is rounded if there is one behind it."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    out = layer(x)
    if isinstance(layer, nn.Linear):
        last: nn.Module = nn.Linear(20, 4)
    else:
        last = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[out.dim()](out.shape[1], 4, 1)
    model = nn.Sequential(layer, nn.ReLU(), last) if rounds else nn.Sequential(layer)
    low = fxquant.lower(fxquant.quantize(model.eval(), [x], progress=False))
    (first, *_) = (each for each in low.modules() if isinstance(each, Int8Layer))
    return first, torch.randint(0, 256, shape, dtype=torch.uint8)


def memory(layer: Int8Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = layers.result_shape(layer, x)
    assert shape is not None
    y = torch.zeros(shape, dtype=layer.result.dtype)
    if isinstance(layer, Int8Conv):
        x, y = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, y))
    return x, y


def ways(layer: Int8Layer, x: torch.Tensor, y: torch.Tensor) -> list[Primitive]:
    return [make() for make in layers.ways(layer, x, y, adds=False).values()]


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_each_way_is_right(name: str, rounds: bool) -> None:
    layer, x = lowered(name, rounds)
    x, y = memory(layer, x)
    kept = x.clone()
    expected = layer(x)
    made = ways(layer, x, y)
    assert len(made) == (2 if name in ("1x1", "linear", "tokens") else 1)
    for way in made:
        assert layers.why_wrong(way, layer, x, y, adds=False) is None
        assert torch.equal(x, kept)
        y.zero_()
        assert way.run() == 0
        assert torch.equal(y, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_primitive_that_is_wrong_is_found_out(name: str) -> None:
    layer, x = lowered(name, rounds=True)
    x, y = memory(layer, x)
    for way in ways(layer, x, y):
        weight = way._memories[WEIGHT].tensor
        before = weight.clone()
        weight.copy_(weight.roll(1))
        assert layers.why_wrong(way, layer, x, y, adds=False) is not None
        weight.copy_(before)
        assert layers.why_wrong(way, layer, x, y, adds=False) is None


def test_what_no_primitive_computes_is_told() -> None:
    layer, x = lowered("3x3", rounds=True)
    assert layers.result_shape(layer, x[:0]) is None
    assert layers.result_shape(layer, x[0]) is None
    assert layers.result_shape(layer, x.float()) is None
    assert layers.result_shape(layer, x[:, :4]) is None


def test_of_a_race_the_fastest_is_taken() -> None:
    class Way:
        def __init__(self, number: int) -> None:
            self.number = number

        def run(self) -> int:
            return sum(range(self.number))

    slow, fast = Way(100_000), Way(10)
    assert layers.fastest([("slow", slow), ("fast", fast)])[0] == "fast"  # type: ignore[list-item]


def test_what_onednn_made_is_freed_when_python_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    layout = Layout.of(torch.zeros(2))
    monkeypatch.setattr(primitives, "library", None)  # as of all names of a module then
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    del layout
    assert said == []
