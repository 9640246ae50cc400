"""What the kernels must be told is read from every spelling of a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxquant
from fxquant.int8.kernel_arguments import (
    average_arguments,
    kernel_activation,
    max_pool2d_arguments,
    zero_padding,
)
from tests.helpers import Net

Function = Callable[[Any, Any], Any]


def last_call(function: Function | nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    """Return the graph of a function or a module, and its last node but the output."""
    model = nn.Sequential(function) if isinstance(function, nn.Module) else Net(function)
    gm = fxquant.trace(model)
    return gm, list(gm.graph.nodes)[-2]


ACTIVATIONS: dict[str, tuple[Function | nn.Module, str | None]] = {
    "SiLU": (nn.SiLU(), "swish"),
    "SiLU, in place": (nn.SiLU(inplace=True), "swish"),
    "F.silu": (lambda m, x: F.silu(x, inplace=True), "swish"),
    "Hardswish": (nn.Hardswish(), "hardswish"),
    "F.hardswish": (lambda m, x: F.hardswish(x), "hardswish"),
    "Tanh": (nn.Tanh(), "tanh"),
    "torch.tanh": (lambda m, x: torch.tanh(x), "tanh"),
    ".tanh": (lambda m, x: x.tanh(), "tanh"),
    "GELU": (nn.GELU(), "gelu"),
    "GELU, tanh": (nn.GELU("tanh"), "gelu_tanh"),
    "F.gelu": (lambda m, x: F.gelu(x), "gelu"),
    "F.gelu, tanh": (lambda m, x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
    "ReLU": (nn.ReLU(), None),
    "Sigmoid": (nn.Sigmoid(), None),
    "LeakyReLU": (nn.LeakyReLU(), None),
    ".exp": (lambda m, x: x.exp(), None),
}


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_names_the_activation_that_a_layers_kernel_knows(
    activation: Function | nn.Module, name: str | None
) -> None:
    gm, node = last_call(activation)
    in_both = name if name in ("swish", "hardswish") else None
    assert kernel_activation(gm, node, nn.Linear(2, 2)) == name
    assert kernel_activation(gm, node, nn.Conv2d(2, 2, 1)) == in_both
    assert kernel_activation(gm, node, nn.Conv1d(2, 2, 1)) is None
    assert kernel_activation(gm, node, nn.Conv3d(2, 2, 1)) is None


def test_a_module_is_known_by_its_type_and_not_by_its_name() -> None:
    gm = fxquant.trace(Net(lambda m, x: m.tanh(x), tanh=nn.Sigmoid()))
    assert kernel_activation(gm, list(gm.graph.nodes)[1], nn.Linear(2, 2)) is None


MAX_POOLS: dict[str, tuple[Function | nn.Module, tuple[Any, ...] | None]] = {
    "MaxPool2d": (nn.MaxPool2d(2), ([2, 2], [2, 2], [0, 0], [1, 1], False)),
    "MaxPool2d, all": (
        nn.MaxPool2d((3, 2), (2, 1), (1, 0), 2, ceil_mode=True),
        ([3, 2], [2, 1], [1, 0], [2, 2], True),
    ),
    "F.max_pool2d": (
        lambda m, x: F.max_pool2d(x, 3, 2, 1),
        ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ),
    "F.max_pool2d, keywords": (
        lambda m, x: F.max_pool2d(input=x, kernel_size=(3, 2), ceil_mode=True),
        ([3, 2], [3, 2], [0, 0], [1, 1], True),
    ),
    "torch.max_pool2d": (
        lambda m, x: torch.max_pool2d(x, [3], stride=[], padding=1),
        ([3, 3], [3, 3], [1, 1], [1, 1], False),
    ),
    "MaxPool2d, indices": (nn.MaxPool2d(2, return_indices=True), None),
    "F.max_pool2d, indices": (lambda m, x: F.max_pool2d(x, 2, return_indices=True), None),
    "MaxPool1d": (nn.MaxPool1d(2), None),
    "F.max_pool3d": (lambda m, x: F.max_pool3d(x, 2), None),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(2), None),
    "AvgPool2d": (nn.AvgPool2d(2), None),
}


@pytest.mark.parametrize(("pool", "arguments"), MAX_POOLS.values(), ids=MAX_POOLS)
def test_reads_the_arguments_of_a_max_pool(
    pool: Function | nn.Module, arguments: tuple[Any, ...] | None
) -> None:
    assert max_pool2d_arguments(*last_call(pool)) == arguments


PADDINGS: dict[str, tuple[Function | nn.Module, list[int] | None]] = {
    "ZeroPad1d": (nn.ZeroPad1d(2), [2, 2]),
    "ZeroPad2d": (nn.ZeroPad2d((1, 2, 0, 3)), [1, 2, 0, 3]),
    "ZeroPad3d": (nn.ZeroPad3d(1), [1] * 6),
    "F.pad": (lambda m, x: F.pad(x, (1, 2)), [1, 2]),
    "F.pad, keywords": (lambda m, x: F.pad(input=x, pad=(1, 2), mode="constant"), [1, 2]),
    "F.pad, reflect": (lambda m, x: F.pad(x, (1, 2), "reflect"), None),
    "ReflectionPad2d": (nn.ReflectionPad2d(1), None),
    "MaxPool2d": (nn.MaxPool2d(2), None),
}


@pytest.mark.parametrize(("pad", "sides"), PADDINGS.values(), ids=PADDINGS)
def test_reads_how_many_zeros_are_added(pad: Function | nn.Module, sides: list[int] | None) -> None:
    assert zero_padding(*last_call(pad)) == sides


AVERAGES: dict[str, tuple[Function | nn.Module, tuple[list[int], bool] | None]] = {
    "AdaptiveAvgPool2d(1)": (nn.AdaptiveAvgPool2d(1), ([-2, -1], True)),
    "AdaptiveAvgPool2d((1, 1))": (nn.AdaptiveAvgPool2d((1, 1)), ([-2, -1], True)),
    "F.adaptive_avg_pool2d": (lambda m, x: F.adaptive_avg_pool2d(x, 1), ([-2, -1], True)),
    "F.adaptive_avg_pool2d, keywords": (
        lambda m, x: F.adaptive_avg_pool2d(input=x, output_size=(1, 1)),
        ([-2, -1], True),
    ),
    ".mean((2, 3))": (lambda m, x: x.mean((2, 3)), ([2, 3], False)),
    ".mean(1, True)": (lambda m, x: x.mean(1, True), ([1], True)),
    "torch.mean, keywords": (
        lambda m, x: torch.mean(x, dim=[-1], keepdim=True),
        ([-1], True),
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


@pytest.mark.parametrize(("average", "arguments"), AVERAGES.values(), ids=AVERAGES)
def test_reads_the_dimensions_of_a_mean(
    average: Function | nn.Module, arguments: tuple[list[int], bool] | None
) -> None:
    assert average_arguments(*last_call(average)) == arguments
