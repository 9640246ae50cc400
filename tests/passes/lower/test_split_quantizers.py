"""SplitQuantizers leaves the values as they are, and what has no integers."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant import TensorSpec
from fxquant.graph.records import value_of
from fxquant.int8.integers import affine_of
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, AffineNumbers, Grid
from fxquant.passes import SplitQuantizers
from tests.helpers import Net, apply, node, outputs, quantizer, refusals, short_text

Function = Callable[[Any, Any], Any]
IMAGES = torch.linspace(-9, 12, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def test_puts_the_integers_between_two_nodes() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.pool(m.q(x)), q=quantizer(), pool=nn.MaxPool2d(2)))
    expected = outputs(gm, IMAGES)
    assert short_text(gm) == cleandoc("""
        x = input()
        q = self.q(x) # FakeQuantize scale=0.05 zero_point=100
        pool = self.pool(q) # MaxPool2d
        return pool
    """)
    assert apply(SplitQuantizers(), gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.05, 100, 255)
        dequantize = kernels.dequantize(quantize, 0.05, 100)
        pool = self.pool(dequantize) # MaxPool2d
        return pool
    """)
    assert value_of(node(gm, "quantize")) == value_of(node(gm, "dequantize")) == "q"
    assert affine_of(node(gm, "quantize")) == quantizer().affine.numbers()
    assert torch.equal(outputs(gm, IMAGES), expected)
    assert not apply(SplitQuantizers(), gm)


@pytest.mark.parametrize(
    ("parameters", "moved"),
    [
        ((0.5, 0, Grid(-128, 127)), (128, Grid(0, 255))),
        ((1.0, -3, Grid(-8, 7)), (5, Grid(0, 15))),
        ((5.0, 2, Grid(0, 3)), (2, Grid(0, 3))),
        ((0.1, 255, Grid(0, 255)), (255, Grid(0, 255))),
    ],
)
def test_moves_every_grid_to_start_at_zero(
    parameters: tuple[float, int, Grid], moved: tuple[int, Grid]
) -> None:
    gm = fxquant.trace(Net(lambda m, x: m.q(x), q=quantizer(*parameters)))
    expected = outputs(gm, IMAGES)
    apply(SplitQuantizers(), gm)
    scale = torch.tensor(parameters[0]).item()
    assert affine_of(node(gm, "quantize")) == AffineNumbers(scale, *moved)
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_splits_each_call_of_a_shared_quantizer_and_deletes_it() -> None:
    gm = fxquant.trace(Net(lambda m, x: torch.cat([m.q(x), m.q(x.exp())], 1), q=quantizer()))
    expected = outputs(gm, IMAGES)
    assert apply(SplitQuantizers(), gm)
    assert not any(isinstance(module, FakeQuantize) for module in gm.modules())
    names = [each.name for each in gm.graph.nodes]
    assert names == [
        "x", "quantize", "dequantize", "exp", "quantize_1", "dequantize_1", "cat", "output"
    ]  # fmt: skip
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_refuses_a_scale_for_each_channel() -> None:
    scale, zero_point = torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int32)
    affine = Affine(scale, zero_point, Grid(0, 255))
    per_channel = FakeQuantize(affine, TensorSpec(), 40.0, axis=-3)
    gm = fxquant.trace(Net(lambda m, x: m.q(x), q=per_channel))
    assert not apply(SplitQuantizers(), gm)
    assert refusals(gm) == {"q": ("not lowered: it has a scale for each channel",)}


def test_refuses_more_than_eight_bits() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.q(x), q=quantizer(grid=Grid(0, 65535), bits=16)))
    assert not apply(SplitQuantizers(), gm)
    assert refusals(gm) == {"q": ("not lowered: 16 bits do not fit into uint8",)}


READ_AFTER_A_CHANGE: dict[str, Function] = {
    "relu_": lambda m, x: (y := m.q(x), F.relu_(y), y.exp())[-1],
    "add_": lambda m, x: (y := m.q(x), y.add_(x), y.exp())[-1],
    "a module": lambda m, x: (y := m.q(x), m.relu(y), y.exp())[-1],
    "a view is changed": lambda m, x: (y := m.q(x), F.relu_(y.view(2, -1)), y.exp())[-1],
    "a slice is changed": lambda m, x: (y := m.q(x), F.relu_(y[:, :2]), y.exp())[-1],
    "a row is changed": lambda m, x: (y := m.q(x), F.relu_(y[0]), y.exp())[-1],
    "a part is changed": lambda m, x: (y := m.q(x), F.relu_(y.chunk(2, 1)[1]), y.exp())[-1],
    "a view is read": lambda m, x: (v := (y := m.q(x)).view(2, -1), F.relu_(y), v.exp())[-1],
    "another view is read": lambda m, x: (
        v := (y := m.q(x)).view(2, -1), F.relu_(y[:, :2]), v.exp()
    )[-1],
    "it is returned": lambda m, x: (y := m.q(x), F.relu_(y).exp(), y)[1:],
}  # fmt: skip


@pytest.mark.parametrize("function", READ_AFTER_A_CHANGE.values(), ids=READ_AFTER_A_CHANGE)
def test_refuses_what_is_changed_in_place_and_read_again(function: Function) -> None:
    gm = fxquant.trace(Net(function, q=quantizer(), relu=nn.ReLU(inplace=True)))
    assert not apply(SplitQuantizers(), gm)
    (reason,) = refusals(gm)["q"]
    assert reason.endswith("changes it in place, and others read it then")


NOT_READ_AFTER_A_CHANGE: dict[str, Function] = {
    "the result is read": lambda m, x: F.relu_(m.q(x)).exp(),
    "read before": lambda m, x: (y := m.q(x)).exp() + F.relu_(y),
    "a copy is changed": lambda m, x: (y := m.q(x), z := F.relu_(y + 1), y.exp() + z)[-1],
    "no call in place": lambda m, x: (y := m.q(x), z := F.relu(y), y.exp() + z)[-1],
}


@pytest.mark.parametrize("function", NOT_READ_AFTER_A_CHANGE.values(), ids=NOT_READ_AFTER_A_CHANGE)
def test_splits_what_is_changed_in_place_but_not_read_again(function: Function) -> None:
    gm = fxquant.trace(Net(function, q=quantizer()))
    expected = outputs(gm, IMAGES)
    assert apply(SplitQuantizers(), gm)
    assert refusals(gm) == {}
    assert torch.equal(outputs(gm, IMAGES), expected)
