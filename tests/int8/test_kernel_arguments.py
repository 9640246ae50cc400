"""What the kernels must be told is read from every spelling of a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant.int8.kernel_arguments import kernel_activation, max_pool2d_arguments
from tests.helpers import Net, last_call

Function = Callable[[Any, Any], Any]


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
