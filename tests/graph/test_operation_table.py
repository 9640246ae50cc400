"""Every spelling of an operation is known for the same, and a new operation is one row."""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.capture.attention.scores import attention_weights_of
from fxquant.graph.operation_table import OPERATIONS, ROWS, Operation
from fxquant.graph.operations import (
    module_of,
    operation_of,
    readers,
    reads_values,
    sources_of_values,
)
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.torchvision_names import STOCHASTIC_DEPTH
from tests.helpers import Net, last_call, node, whole

Function = Callable[[Any, Any], Any]

MADE_WITH: dict[type, tuple[Any, ...]] = {
    nn.Hardtanh: (0.0, 6.0), ChannelClamp: (torch.zeros(2), torch.ones(2), -1),
    nn.AvgPool1d: (2,), nn.AvgPool2d: (2,), nn.AvgPool3d: (2,),
    nn.AdaptiveAvgPool1d: (1,), nn.AdaptiveAvgPool2d: (1,), nn.AdaptiveAvgPool3d: (1,),
    nn.MaxPool1d: (2,), nn.MaxPool2d: (2,), nn.MaxPool3d: (2,),
    nn.AdaptiveMaxPool1d: (2,), nn.AdaptiveMaxPool2d: (2,), nn.AdaptiveMaxPool3d: (2,),
    nn.ZeroPad1d: ((1, 1),), nn.ZeroPad2d: ((1, 1),), nn.ZeroPad3d: ((1, 1),),
    nn.Unflatten: (1, (2, 2)), nn.PixelShuffle: (2,), nn.PixelUnshuffle: (2,),
    nn.ChannelShuffle: (2,), nn.UpsamplingNearest2d: (2,), nn.Upsample: (2,),
    torchvision.ops.StochasticDepth: (0.5, "row"),
}  # fmt: skip
"""What modules are made with, where they need anything."""

MOVED = Operation(keeps_values=True, moves_only=True)
MADE_ROWS = Operation(keeps_values=True, moves_only=True, makes_rows=True)
MOVED_BY_CHANNEL = Operation(keeps_values=True, moves_only=True, keeps_channels=True)
IDENTITY = Operation("identity", keeps_values=True, moves_only=True, keeps_channels=True)
POOLED = Operation(keeps_values=True, keeps_channels=True)
POOLED_2D = Operation("max_pool2d", keeps_values=True, keeps_channels=True)
RELU6 = Operation("relu", bounds=(0.0, 6.0), limits=(0.0, 6.0))

CALLS: dict[Any, tuple[tuple[Any, ...], Operation]] = {
    operator.add: (("y",), Operation("add")),
    operator.mul: (("y",), Operation("mul")),
    operator.matmul: (("y",), Operation("product")),
    attention_weights_of: ((2,), Operation()),
    nn.Hardtanh: ((0.0, 6.0), RELU6),
    F.hardtanh_: ((0.0, 6.0), RELU6),
    torch.clamp: ((0, 6), RELU6),
    nn.GELU: ((), Operation("activation", is_elementwise=True, activation="gelu")),
    nn.AdaptiveAvgPool2d: (
        (1,),
        Operation("average", keeps_channels=True, averaged=((-2, -1), True)),
    ),
    torch.mean: ((-1,), Operation("average", averaged=((-1,), False))),
    nn.MaxPool1d: ((2,), POOLED),
    nn.MaxPool2d: ((2,), POOLED_2D),
    nn.MaxPool3d: ((2,), POOLED),
    nn.AdaptiveMaxPool1d: ((2,), POOLED),
    nn.AdaptiveMaxPool2d: ((2,), POOLED),
    nn.AdaptiveMaxPool3d: ((2,), POOLED),
    nn.ZeroPad1d: ((), Operation(keeps_values=True, keeps_channels=True, padding=(1, 1))),
    F.pad: (
        ((1, 1),),
        Operation(keeps_values=True, keeps_channels=True, padding=(1, 1)),
    ),
    nn.Upsample: ((None, 2), MOVED_BY_CHANNEL),
    nn.Flatten: ((1,), replace(MADE_ROWS, moved_axes=("flatten", (1, -1)))),
    torch.permute: (((0, 2, 1),), replace(MOVED, moved_axes=("permute", (0, 2, 1)))),
    torch.transpose: ((1, 2), replace(MOVED, moved_axes=("transpose", (1, 2)))),
    torch.reshape: (((4, -1),), MADE_ROWS),
    operator.getitem: ((slice(1),), replace(MOVED, selects=True)),
    nn.Sequential: ((), IDENTITY),
    nn.Dropout: ((0.5, False), IDENTITY),
    nn.AlphaDropout: ((0.5, False), IDENTITY),
    STOCHASTIC_DEPTH: ((0.5, "row", False), IDENTITY),
    getattr: (("shape",), Operation("shape")),
}
"""Of each row that reads arguments, by its first spelling: those behind x, and what it is then.

"y" is another node. Modules are called with x alone.
"""


def written(spelling: Any, arguments: tuple[Any, ...]) -> tuple[fx.GraphModule, fx.Node]:
    """Return a graph of one call, and the call."""
    if isinstance(spelling, str) and "." in spelling:  # torchvision's
        spelling = getattr(torchvision.ops, spelling.rpartition(".")[2])
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    behind = tuple(y if each == "y" else each for each in arguments)
    modules = {}
    if isinstance(spelling, type):
        modules["module"] = spelling(*MADE_WITH.get(spelling, ())).eval()
        node = graph.call_module("module", (x,))
    elif isinstance(spelling, str):
        node = graph.call_method(spelling, (x, *behind))
    else:
        node = graph.call_function(spelling, (x, *behind))
    return fx.GraphModule(modules, graph), node


TAKE_ONE_TENSOR = {
    str(getattr(spellings[0], "__name__", spellings[0])): (row, spellings)
    for row, spellings in ROWS
    if spellings[0] not in (torch.cat, "reshape_as")
}


@pytest.mark.parametrize(("row", "spellings"), TAKE_ONE_TENSOR.values(), ids=TAKE_ONE_TENSOR)
def test_every_spelling_of_a_row_is_the_same_operation(row: Any, spellings: tuple[Any]) -> None:
    arguments, expected = ((), row) if isinstance(row, Operation) else CALLS[spellings[0]]
    for spelling in spellings:
        assert operation_of(*written(spelling, arguments)) == expected, spelling


@pytest.mark.parametrize("concat", [torch.cat, torch.concat, torch.concatenate])
@pytest.mark.parametrize("build", [lambda cat, x: cat((x, x)), lambda cat, x: cat(tensors=[x, x])])
def test_every_spelling_of_a_concatenation_names_its_tensors(
    concat: Callable[..., Tensor], build: Callable[[Any, Any], Any]
) -> None:
    gm, node = last_call(lambda m, x: build(concat, x))
    (x,) = gm.graph.find_nodes(op="placeholder")
    assert operation_of(gm, node) == Operation("concat", concatenated=(x, x))
    assert sources_of_values(gm, node) == (x, x)


@pytest.mark.parametrize("name", ["reshape_as", "view_as", "expand_as"])
def test_what_takes_the_shape_of_another_tensor_moves_values(name: str) -> None:
    gm, call = written(name, ("y",))
    y = node(gm, "y")
    assert operation_of(gm, call) == replace(MOVED, shape_of=y)
    assert not reads_values(gm, call, y)
    assert reads_values(gm, call, node(gm, "x"))


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (lambda m, x: x.size(0) + x.shape[1], "add"),
        (lambda m, x: x.exp() + x.shape[1] // 2, "add"),
        (lambda m, x: x.exp() + (x.ndim - 1) * x.size(0), "add"),
    ],
)
def test_a_sum_with_a_size_adds_no_tensors(function: Function, number: str) -> None:
    assert operation_of(*last_call(function)) == Operation()


def test_a_sum_with_a_part_of_a_tensor_adds_tensors() -> None:
    assert operation_of(*last_call(lambda m, x: x[0] + x.exp() * 2)).kind == "add"


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: x.shape, lambda x: x.ndim, lambda x: x.dtype, lambda x: x.device,
        lambda x: x.size(0), lambda x: x.dim(), lambda x: x.numel(), torch.numel,
        torch.zeros_like, lambda x: x.new_zeros(1), torch.is_floating_point,
    ],
)  # fmt: skip
def test_what_asks_for_a_shape_or_a_type_sees_no_values(asks: Callable[[Any], Any]) -> None:
    gm, call = last_call(lambda m, x: asks(x))
    assert not reads_values(gm, call, node(gm, "x"))
    assert readers(gm, node(gm, "x")) == []


def test_what_fills_a_new_tensor_is_seen() -> None:
    gm, call = last_call(lambda m, x: x.new_full((2,), x.max()))
    assert reads_values(gm, call, node(gm, "max_1"))


def test_weights_of_scores_read_the_shape_of_queries_alone() -> None:
    gm, call = written(attention_weights_of, ("y",))
    assert not reads_values(gm, call, node(gm, "y"))
    assert reads_values(gm, call, node(gm, "x"))


@pytest.mark.parametrize(
    ("function", "is_one"),
    [
        (lambda m, x: x @ x.exp(), True),
        (lambda m, x: torch.einsum("ij,jk->ik", x, x.exp()), True),
        (lambda m, x: x @ m.other, False),
        (lambda m, x: x.shape[0] @ x, False),
    ],
)
def test_a_product_is_of_two_tensors_that_are_computed(function: Function, is_one: bool) -> None:
    gm = fxquant.trace(Net(function, other=nn.Parameter(torch.ones(2, 2))))
    *_, call, _ = gm.graph.nodes
    assert (operation_of(gm, call).kind == "product") == is_one


def test_a_concatenation_of_a_computed_list_names_no_tensors() -> None:
    assert operation_of(*written(torch.cat, ())) == Operation()


def test_no_spelling_stands_in_two_rows() -> None:
    assert len(OPERATIONS) == sum(len(spellings) for _, spellings in ROWS)


OTHERS: dict[str, Function] = {
    "x + 1": lambda m, x: x + 1,
    "x + x, scaled": lambda m, x: torch.add(x, x, alpha=2),
    "clamp by a tensor": lambda m, x: x.clamp(x.mean()),
    "x[0]": lambda m, x: x[0],
    "x[computed]": lambda m, x: x[x.argmax()],
    "pad with ones": lambda m, x: F.pad(x, (1, 1), value=1.0),
    "interpolate linearly": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "dropout": lambda m, x: F.dropout(x),
    "x.T": lambda m, x: x.T,
    "exp": lambda m, x: x.exp(),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_what_only_looks_like_a_known_operation_is_another(function: Function) -> None:
    assert operation_of(*last_call(function)) == Operation()


@pytest.mark.parametrize(
    ("function", "limits"),
    [
        (lambda m, x: x.clamp(1), (1.0, math.inf)),
        (lambda m, x: x.clamp(max=2), (-math.inf, 2.0)),
        (lambda m, x: F.hardtanh(x), (-1.0, 1.0)),
        (lambda m, x: F.hardtanh_(x, -2.0, 0.5), (-2.0, 0.5)),
    ],
)
def test_a_clamp_at_numbers_has_limits_and_is_no_relu(
    function: Function, limits: tuple[float, float]
) -> None:
    operation = operation_of(*last_call(function))
    assert operation.limits == limits
    assert operation.bounds is None
    assert operation.kind in ("other", "activation")


def test_a_module_is_known_by_its_type_and_an_input_by_nothing() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.relu(x), relu=nn.Flatten()))
    assert [operation_of(gm, node).kind for node in gm.graph.nodes] == ["other"] * 3
    graph = fx.Graph()
    graph.output(graph.placeholder("split"))
    gm = fx.GraphModule({}, graph)
    assert [operation_of(gm, node).kind for node in gm.graph.nodes] == ["other"] * 2


def test_a_new_operation_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 3, 1)
    net = Net(lambda m, x: m.second(m.first(x).flip(2)), first=conv, second=conv)
    x = torch.randn(2, 3, 8, 8)
    assert quantized_tensors(fxquant.quantize(net, [x])) == ["x", "flip"]
    monkeypatch.setitem(OPERATIONS, "flip", MOVED)
    assert quantized_tensors(fxquant.quantize(net, [x])) == ["x", "first"]


def quantized_tensors(model: nn.Module) -> list[str]:
    gm = whole(model)
    is_quantizer = [isinstance(module_of(gm, node), FakeQuantize) for node in gm.graph.nodes]
    return [node.args[0].name for node in itertools.compress(gm.graph.nodes, is_quantizer)]


PADDINGS: dict[str, tuple[Function | nn.Module, tuple[int, ...] | None]] = {
    "ZeroPad1d": (nn.ZeroPad1d(2), (2, 2)),
    "ZeroPad2d": (nn.ZeroPad2d((1, 2, 0, 3)), (1, 2, 0, 3)),
    "ZeroPad3d": (nn.ZeroPad3d(1), (1,) * 6),
    "F.pad": (lambda m, x: F.pad(x, (1, 2)), (1, 2)),
    "F.pad, keywords": (lambda m, x: F.pad(input=x, pad=(1, 2), mode="constant"), (1, 2)),
    "F.pad, reflect": (lambda m, x: F.pad(x, (1, 2), "reflect"), None),
    "ReflectionPad2d": (nn.ReflectionPad2d(1), None),
    "MaxPool2d": (nn.MaxPool2d(2), None),
}


@pytest.mark.parametrize(("pad", "sides"), PADDINGS.values(), ids=PADDINGS)
def test_reads_how_many_zeros_are_added(
    pad: Function | nn.Module, sides: tuple[int, ...] | None
) -> None:
    assert operation_of(*last_call(pad)).padding == sides


AVERAGES: dict[str, tuple[Function | nn.Module, tuple[tuple[int, ...], bool] | None]] = {
    "AdaptiveAvgPool2d(1)": (nn.AdaptiveAvgPool2d(1), ((-2, -1), True)),
    "AdaptiveAvgPool2d((1, 1))": (nn.AdaptiveAvgPool2d((1, 1)), ((-2, -1), True)),
    "F.adaptive_avg_pool2d": (lambda m, x: F.adaptive_avg_pool2d(x, 1), ((-2, -1), True)),
    "F.adaptive_avg_pool2d, keywords": (
        lambda m, x: F.adaptive_avg_pool2d(input=x, output_size=(1, 1)),
        ((-2, -1), True),
    ),
    ".mean((2, 3))": (lambda m, x: x.mean((2, 3)), ((2, 3), False)),
    ".mean(1, True)": (lambda m, x: x.mean(1, True), ((1,), True)),
    "torch.mean, keywords": (
        lambda m, x: torch.mean(x, dim=[-1], keepdim=True),
        ((-1,), True),
    ),
    "AdaptiveAvgPool2d((1, None))": (nn.AdaptiveAvgPool2d((1, None)), None),
    "AdaptiveAvgPool2d(2)": (nn.AdaptiveAvgPool2d(2), None),
    "AdaptiveAvgPool1d(1)": (nn.AdaptiveAvgPool1d(1), None),
    "AvgPool2d": (nn.AvgPool2d(2), None),
    ".mean()": (lambda m, x: x.mean(), None),
    ".mean(axis=1)": (lambda m, x: x.mean(axis=1), None),
    ".mean(computed)": (lambda m, x: x.mean(x.dim() - 1), None),
    ".mean([])": (lambda m, x: x.mean([]), None),
    ".sum(1)": (lambda m, x: x.sum(1), None),
}


@pytest.mark.parametrize(("average", "averaged"), AVERAGES.values(), ids=AVERAGES)
def test_reads_the_dimensions_of_a_mean(
    average: Function | nn.Module, averaged: tuple[tuple[int, ...], bool] | None
) -> None:
    assert operation_of(*last_call(average)).averaged == averaged
