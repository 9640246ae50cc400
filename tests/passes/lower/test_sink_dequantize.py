"""SinkDequantize lets calls that keep values work on integers, and all others on what they did."""

import re
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.capture.recording.requirements import require
from fxquant.graph.records import value_of
from fxquant.int8.integers import affine_of
from fxquant.numerics.affine import Grid
from fxquant.passes import SinkDequantize, SplitQuantizers
from tests.helpers import Net, apply, node, outputs, quantizer, short_text

Function = Callable[[Any, Any], Any]
IMAGES = torch.linspace(-9, 12, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


def split(function: Function, **parts: Any) -> fx.GraphModule:
    """Return the graph of `function`, in which `m.q` is a quantizer, on integers."""
    gm = fxquant.trace(Net(function, q=quantizer(), other=quantizer(0.04, 90), **parts))
    apply(SplitQuantizers(), gm)
    return gm


def between(gm: fx.GraphModule) -> list[str]:
    """Return the names of the nodes behind the first `quantize`, without the output."""
    names = [each.name for each in gm.graph.nodes]
    return names[names.index("quantize") + 1 : -1]


def applied(call: Any) -> Function:
    """Return the function that applies a module `m.call`, or a function, to what `m.q` returns."""
    if isinstance(call, nn.Module):
        return lambda m, x: m.call(m.q(x))
    return lambda m, x: call(m, m.q(x))


def without_number(names: list[str]) -> list[str]:
    return [re.sub(r"_\d+$", "", name) for name in names]


def test_moves_dequantize_behind_a_pool() -> None:
    gm = split(lambda m, x: m.pool(m.q(x)), pool=nn.MaxPool2d(2))
    expected = outputs(gm, IMAGES)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.05, 100, 255)
        dequantize = kernels.dequantize(quantize, 0.05, 100)
        pool = self.pool(dequantize) # MaxPool2d
        return pool
    """)
    assert apply(SinkDequantize(), gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.05, 100, 255)
        pool = kernels.max_pool2d(quantize, [2, 2], [2, 2], [0, 0], [1, 1], False)
        dequantize_1 = kernels.dequantize(pool, 0.05, 100)
        return dequantize_1
    """)
    assert value_of(node(gm, "pool")) == value_of(node(gm, "dequantize_1")) == "pool"
    assert affine_of(node(gm, "pool")) == affine_of(node(gm, "quantize"))
    assert torch.equal(outputs(gm, IMAGES), expected)
    assert not apply(SinkDequantize(), gm)


MOVES: dict[str, Function | nn.Module] = {
    "reshape": lambda m, x: x.reshape(2, -1),
    "view": lambda m, x: x.view(2, 2, -1),
    "view, of its own size": lambda m, x: x.view(x.size(0), -1),
    "flatten": lambda m, x: torch.flatten(x, 1),
    "Flatten": nn.Flatten(),
    "Unflatten": nn.Unflatten(1, (2, 2)),
    "permute": lambda m, x: x.permute(0, 2, 3, 1),
    "transpose": lambda m, x: torch.transpose(x, 1, 2),
    "squeeze": lambda m, x: x[:, :1].squeeze(1),
    "unsqueeze": lambda m, x: x.unsqueeze(1),
    "contiguous": lambda m, x: x.permute(0, 2, 3, 1).contiguous(),
    "expand": lambda m, x: x[:, :1].expand(2, 3, 6, 6),
    "repeat": lambda m, x: x.repeat(1, 2, 1, 1),
    "narrow": lambda m, x: x.narrow(1, 1, 2),
    "slice": lambda m, x: x[:, 1:, ::2],
    "ellipsis": lambda m, x: x[..., None, 0],
    "amax": lambda m, x: x.amax((2, 3)),
    "PixelShuffle": nn.PixelShuffle(2),
    "PixelUnshuffle": nn.PixelUnshuffle(2),
    "ChannelShuffle": nn.ChannelShuffle(2),
    "F.pixel_shuffle": lambda m, x: F.pixel_shuffle(x, 2),
    "F.channel_shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "Upsample": nn.Upsample(scale_factor=2),
    "UpsamplingNearest2d": nn.UpsamplingNearest2d(scale_factor=2),
    "F.interpolate": lambda m, x: F.interpolate(x, size=(5, 9)),
    "F.interpolate, exact": lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "F.interpolate, 1d": lambda m, x: F.interpolate(x[:, 0], scale_factor=2),
    "F.interpolate, 3d": lambda m, x: F.interpolate(x[:, None], scale_factor=2),
    "Dropout": nn.Dropout().eval(),
    "F.dropout": lambda m, x: F.dropout(x, 0.5, training=False),
    "cat, twice the same": lambda m, x: torch.cat([x, x], 1),
    "cat, with a part": lambda m, x: torch.cat([x, x[:, :2]], 1),
    "cat, keywords": lambda m, x: torch.cat(tensors=(x, x), dim=2),
    "concat": lambda m, x: torch.concat([x, x]),
}


@pytest.mark.parametrize("call", MOVES.values(), ids=MOVES)
def test_calls_that_move_values_are_the_same_calls_on_integers(call: Any) -> None:
    gm = split(applied(call), call=call)
    expected, names = outputs(gm, IMAGES), between(gm)
    assert apply(SinkDequantize(), gm)
    names.remove("dequantize")
    assert without_number(between(gm)) == [*without_number(names), "dequantize"]
    assert torch.equal(outputs(gm, IMAGES), expected)
    assert not apply(SinkDequantize(), gm)


SELECTS: dict[str, tuple[Function | nn.Module, list[str]]] = {
    "F.max_pool2d": (lambda m, x: F.max_pool2d(x, 3, 2, 1), ["max_pool2d"]),
    "torch.max_pool2d": (lambda m, x: torch.max_pool2d(x, [2], [], 1), ["max_pool2d"]),
    "MaxPool2d, padded": (nn.MaxPool2d((3, 2), padding=(1, 0), ceil_mode=True), ["call"]),
    "F.max_pool2d, no batch": (
        lambda m, x: F.max_pool2d(x[:, 1], 2),
        ["getitem", "max_pool2d"],
    ),
    "F.pad": (lambda m, x: F.pad(x, (1, 2, 0, 1)), ["pad"]),
    "F.pad, keywords": (
        lambda m, x: F.pad(input=x, pad=(1, 2, 0, 1), mode="constant", value=0),
        ["pad"],
    ),
    "F.pad, cropping": (lambda m, x: F.pad(x, (-1, 2)), ["pad"]),
    "ZeroPad1d": (nn.ZeroPad1d(1), ["call"]),
    "ZeroPad2d": (nn.ZeroPad2d((1, 0, 2, 0)), ["call"]),
    "F.pad, reflect": (
        lambda m, x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
        ["widen", "pad", "narrow"],
    ),
    "F.pad, replicate": (
        lambda m, x: F.pad(x, (1, 2, 0, 1), "replicate"),
        ["widen", "pad", "narrow"],
    ),
    "MaxPool1d": (lambda m, x: m.pool(x[:, 1]), ["getitem", "widen", "pool", "narrow"]),
    "F.max_pool1d": (
        lambda m, x: F.max_pool1d(x[:, 1], 2),
        ["getitem", "widen", "max_pool1d", "narrow"],
    ),
    "MaxPool3d": (nn.MaxPool3d(2), ["widen", "call", "narrow"]),
    "F.max_pool3d": (lambda m, x: F.max_pool3d(x, 2), ["widen", "max_pool3d", "narrow"]),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(2), ["widen", "call", "narrow"]),
    "F.adaptive_max_pool2d": (
        lambda m, x: F.adaptive_max_pool2d(x, (3, 2)),
        ["widen", "adaptive_max_pool2d", "narrow"],
    ),
}


@pytest.mark.parametrize(("call", "names"), SELECTS.values(), ids=SELECTS)
def test_pools_and_paddings_work_on_integers(call: Any, names: list[str]) -> None:
    gm = split(applied(call), call=call, pool=nn.MaxPool1d(3, 2, 1))
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert without_number(between(gm)) == [*names, "dequantize"]
    assert torch.equal(outputs(gm, IMAGES), expected)
    assert not apply(SinkDequantize(), gm)


def test_pads_with_the_zero_point() -> None:
    gm = split(lambda m, x: F.pad(m.q(x), (1, 0)))
    apply(SinkDequantize(), gm)
    assert "pad = kernels.pad(quantize, [1, 0], 100)" in short_text(gm)


def test_a_chain_of_calls_stays_on_integers() -> None:
    gm = split(lambda m, x: F.pad(F.max_pool2d(m.q(x), 2).flatten(2)[:, :, 1:], (1, 1)).exp())
    expected = outputs(gm, IMAGES)
    apply(SinkDequantize(), gm)
    assert without_number(between(gm)) == [
        "max_pool2d", "flatten", "getitem", "pad", "dequantize", "exp"
    ]  # fmt: skip
    assert torch.equal(outputs(gm, IMAGES), expected)


SPLITS: dict[str, Function] = {
    "chunk": lambda m, x: m.q(x).chunk(2, 1),
    "torch.split": lambda m, x: torch.split(m.q(x), [3, 1], dim=1),
    "unbind": lambda m, x: torch.unbind(m.q(x)),
}


@pytest.mark.parametrize("function", SPLITS.values(), ids=SPLITS)
def test_each_part_of_a_split_is_integers(function: Function) -> None:
    gm = split(lambda m, x: (parts := function(m, x), [parts[-1].exp(), parts[0]])[-1])
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert between(gm)[1:] == ["getitem", "dequantize_1", "exp", "getitem_1", "dequantize_2"]
    assert affine_of(node(gm, "getitem_1")) == affine_of(node(gm, "quantize"))
    torch.testing.assert_close(outputs(gm, IMAGES), expected, rtol=0, atol=0)
    assert not apply(SinkDequantize(), gm)


def test_the_number_of_parts_may_be_asked() -> None:
    gm = split(lambda m, x: m.q(x).chunk(2, 1)[0].exp())
    chunk = node(gm, "chunk")
    with gm.graph.inserting_after(chunk):
        number = gm.graph.call_function(len, (chunk,))
    with gm.graph.inserting_after(number):
        gm.graph.call_function(require, (number, 2, "len(chunk) == 2"))
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert between(gm) == ["chunk", "len_1", "require", "getitem", "dequantize_1", "exp"]
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_concatenates_integers_of_two_quantizers_with_the_same_parameters() -> None:
    gm = split(lambda m, x: torch.cat([m.q(x), m.q(x.exp())], 1))
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert between(gm) == ["exp", "quantize_1", "cat", "dequantize_2"]
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_integers_and_floats_of_one_tensor_are_both_read() -> None:
    gm = split(lambda m, x: (y := m.q(x), y.exp() * F.max_pool2d(y, 3, 1, 1))[-1])
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert between(gm) == ["dequantize", "exp", "max_pool2d", "dequantize_1", "mul"]
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_shapes_are_those_of_the_integers() -> None:
    gm = split(lambda m, x: (y := m.q(x)).view(y.shape[0], y.size(1), y.dim(), -1).exp())
    expected = outputs(gm, IMAGES)
    apply(SinkDequantize(), gm)
    assert without_number(between(gm)) == [
        "getattr", "getitem", "size", "dim", "view", "dequantize", "exp"
    ]  # fmt: skip
    assert torch.equal(outputs(gm, IMAGES), expected)


STAYS: dict[str, Function] = {
    "no call keeps values": lambda m, x: m.q(x).exp(),
    "row": lambda m, x: m.q(x)[0].exp(),
    "pad with 1": lambda m, x: F.pad(m.q(x), (1, 1), value=1.0),
    "bilinear": lambda m, x: F.interpolate(m.q(x), scale_factor=2, mode="bilinear"),
    "average": lambda m, x: F.avg_pool2d(m.q(x), 2),
    "relu": lambda m, x: m.q(x).relu(),
    "cat of two grids": lambda m, x: torch.cat([m.q(x), m.other(x)], 1),
    "cat with a float": lambda m, x: torch.cat([m.q(x), x], 1),
    "a slice of a split": lambda m, x: m.q(x).chunk(4, 1)[1:],
    "a split, returned": lambda m, x: m.q(x).chunk(2, 1),
    "indices": lambda m, x: m.pool(m.q(x)),
    "indices, adaptive": lambda m, x: F.adaptive_max_pool2d(m.q(x), 2, return_indices=True),
    "changed in place, and read": lambda m, x: (
        y := F.max_pool2d(m.q(x), 2), F.relu_(y), y.exp()
    )[-1],
    "a module's name": lambda m, x: m.chunk(m.q(x)),
}  # fmt: skip


@pytest.mark.parametrize("function", STAYS.values(), ids=STAYS)
def test_leaves_floats_before_all_other_calls(function: Function) -> None:
    gm = split(function, pool=nn.MaxPool2d(2, return_indices=True), chunk=nn.Sigmoid())
    expected, before = outputs(gm, IMAGES), short_text(gm)
    assert not apply(SinkDequantize(), gm)
    assert short_text(gm) == before
    torch.testing.assert_close(outputs(gm, IMAGES), expected, rtol=0, atol=0)


def test_a_module_is_no_split_whatever_its_name() -> None:
    gm = split(lambda m, x: m.split(m.q(x)), split=nn.MaxPool2d(2))
    expected = outputs(gm, IMAGES)
    assert apply(SinkDequantize(), gm)
    assert between(gm) == ["split", "dequantize_1"]
    assert torch.equal(outputs(gm, IMAGES), expected)


def test_works_on_grids_of_few_bits() -> None:
    gm = fxquant.trace(
        Net(lambda m, x: m.pool(m.q(x)), q=quantizer(1.0, 5, Grid(0, 15)), pool=nn.MaxPool3d(2))
    )
    apply(SplitQuantizers(), gm)
    expected = outputs(gm, IMAGES)
    apply(SinkDequantize(), gm)
    assert "kernels.narrow(pool, 1.0, 5, 0, 15)" in short_text(gm)
    assert value_of(node(gm, "pool")) == ""  # in steps, not in the units of the model
    assert value_of(node(gm, "narrow")) == "pool"
    assert torch.equal(outputs(gm, IMAGES), expected)
