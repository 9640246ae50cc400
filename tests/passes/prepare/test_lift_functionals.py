"""LiftFunctionals turns functional layers into modules that hold the same parameters."""

import copy
from collections.abc import Callable
from functools import partial
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import LiftFunctionals
from tests.helpers import Net, apply, graph_text, outputs, refusals, relative_error

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def functional(function: Any, weight: tuple[int, ...], *args: Any, **kwargs: Any) -> Net:
    """Return a model of one call with a weight and a bias of 4."""
    return Net(
        lambda m, x: function(x, m.weight, m.bias, *args, **kwargs),
        weight=parameter(*weight),
        bias=parameter(4),
    )


def x_of(axes: int) -> torch.Tensor:
    return torch.randn(2, 4, *[5] * axes)


LIFTED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    **{
        f"conv{n}d": (partial(functional, CONVS[n], (4, 4, *[3] * n)), n, f"Conv{n}d")
        for n in CONVS
    },
    **{
        f"conv_transpose{n}d": (
            partial(functional, TRANSPOSED[n], (4, 4, *[3] * n)), n, f"ConvTranspose{n}d"
        )
        for n in TRANSPOSED
    },
    "conv2d, positional": (
        lambda: functional(F.conv2d, (4, 2, 3, 3), 2, (1, 0), 1, 2), 2, "Conv2d"
    ),
    "conv2d, keywords": (
        lambda: Net(
            lambda m, x: F.conv2d(
                input=x, weight=m.w, stride=(2, 1), padding="valid", dilation=2, groups=2
            ),
            w=parameter(6, 2, 2, 2),
        ), 2, "Conv2d",
    ),
    "conv2d, same": (
        lambda: functional(F.conv2d, (4, 4, 3, 3), padding="same"), 2, "Conv2d"
    ),
    "conv_transpose2d, positional": (
        lambda: functional(F.conv_transpose2d, (4, 2, 3, 3), 2, 1, 1, 2, 2), 2, "ConvTranspose2d"
    ),
    "conv_transpose2d, keywords": (
        lambda: functional(
            F.conv_transpose2d, (4, 2, 2, 3), stride=(2, 1), groups=2, output_padding=(1, 0)
        ), 2, "ConvTranspose2d",
    ),
    "linear": (lambda: functional(F.linear, (4, 5)), 1, "Linear"),
    "linear, no bias": (lambda: Net(lambda m, x: F.linear(x, m.w), w=parameter(3, 5)), 1, "Linear"),
    "conv2d, weight in a buffer": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w), w=torch.randn(4, 4, 3, 3)), 2, "Conv2d"
    ),
    "batch_norm": (
        lambda: Net(
            lambda m, x: F.batch_norm(x, m.mean, m.var, m.w, m.b, m.training, 0.1, 0.3),
            mean=torch.randn(4), var=torch.rand(4) + 0.5, w=parameter(4), b=parameter(4),
        ), 2, "FunctionalBatchNorm",
    ),
    "batch_norm, keywords": (
        lambda: Net(
            lambda m, x: F.batch_norm(x, running_mean=m.mean, running_var=m.var, eps=0.3),
            mean=torch.randn(4), var=torch.rand(4) + 0.5,
        ), 0, "FunctionalBatchNorm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "axes", "kind"), LIFTED.values(), ids=LIFTED)
def test_lifts_and_computes_the_same(make: Callable[[], nn.Module], axes: int, kind: str) -> None:
    model, x = make(), x_of(axes)
    gm = fxquant.trace(model)
    assert apply(LiftFunctionals(), gm)
    assert [each.op for each in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    assert [type(module).__name__ for module in gm.children()] == [kind]
    assert torch.equal(outputs(gm, x), outputs(model, x))
    assert not apply(LiftFunctionals(), gm)


@pytest.mark.parametrize(("make", "axes", "kind"), LIFTED.values(), ids=LIFTED)
def test_moves_parameters_and_leaves_no_duplicate(
    make: Callable[[], nn.Module], axes: int, kind: str
) -> None:
    gm = fxquant.trace(make())
    before = [value.data_ptr() for value in gm.state_dict().values()]
    apply(LiftFunctionals(), gm)
    after = [value.data_ptr() for value in gm.state_dict().values()]
    assert sorted(after) == sorted(before)


class Block(nn.Module):
    """A layer as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.more = parameter(4, 4, 3, 3), parameter(4), parameter(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class BlockWithMore(Block):
    """It holds more than its layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.more


def test_names_the_module_after_the_function_in_the_parameters_owner() -> None:
    gm = fxquant.trace(nn.Sequential(BlockWithMore(), nn.ReLU()))
    apply(LiftFunctionals(), gm)
    assert graph_text(gm) == cleandoc("""
        input_1 = input()
        _0_conv2d = self.0.conv2d(input_1) # Conv2d
        _0_more = self.0.more
        mul = operator.mul(_0_conv2d, _0_more)
        _1 = self.1(mul) # ReLU
        return _1
    """)
    assert set(gm.state_dict()) == {"0.more", "0.conv2d.weight", "0.conv2d.bias"}


def test_the_module_takes_the_place_of_what_holds_its_parameters_alone() -> None:
    gm = fxquant.trace(nn.Sequential(Block(), nn.ReLU()))
    assert graph_text(gm) == cleandoc("""
        input_1 = input()
        _0_weight = self.0.weight
        _0_bias = self.0.bias
        conv2d = torch.conv2d(input_1, _0_weight, _0_bias, padding=1)
        _1 = self.1(conv2d) # ReLU
        return _1
    """)
    apply(LiftFunctionals(), gm)
    assert graph_text(gm) == cleandoc("""
        input_1 = input()
        _0 = self.0(input_1) # Conv2d
        _1 = self.1(_0) # ReLU
        return _1
    """)
    assert list(gm.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("make", [parameter, torch.randn], ids=["parameter", "buffer"])
def test_calls_that_share_parameters_share_one_module(make: Callable[..., torch.Tensor]) -> None:
    model = Net(lambda m, x: F.conv2d(F.conv2d(x, m.w), m.w), w=make(4, 4, 1, 1))
    gm = fxquant.trace(model)
    x = x_of(2)
    apply(LiftFunctionals(), gm)
    assert [str(each.target) for each in gm.graph.find_nodes(op="call_module")] == ["conv2d"] * 2
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_calls_with_other_options_get_modules_of_their_own_with_one_parameter() -> None:
    model = Net(lambda m, x: F.conv2d(F.conv2d(x, m.w), m.w, padding=1), w=parameter(4, 4, 3, 3))
    gm = fxquant.trace(model)
    x = x_of(2)
    apply(LiftFunctionals(), gm)
    assert [name for name, _ in gm.named_children()] == ["conv2d", "conv2d_1"]
    assert gm.get_parameter("conv2d.weight") is gm.get_parameter("conv2d_1.weight")
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_keeps_a_module_whose_weight_a_function_borrows() -> None:
    model = Net(lambda m, x: F.conv_transpose2d(m.conv(x), m.conv.weight), conv=nn.Conv2d(4, 4, 3))
    gm = fxquant.trace(model)
    x = x_of(2)
    apply(LiftFunctionals(), gm)
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_keeps_a_parameter_that_the_graph_uses_elsewhere() -> None:
    model = Net(lambda m, x: F.linear(x, m.w) + m.w.sum(), w=parameter(5, 5))
    gm = fxquant.trace(model)
    x = x_of(1)
    apply(LiftFunctionals(), gm)
    assert set(gm.state_dict()) == {"w", "linear.weight"}
    assert torch.equal(outputs(gm, x), outputs(model, x))


BORROWED: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "a convolution": (
        lambda: Net(lambda m, x: m.conv(x) + F.conv2d(x, m.conv.weight), conv=nn.Conv2d(4, 4, 3)),
        torch.randn(2, 4, 5, 5),
    ),
    "a linear layer": (
        lambda: Net(lambda m, x: F.linear(m.fc(x), m.fc.weight, m.fc.bias), fc=nn.Linear(5, 5)),
        torch.randn(2, 5),
    ),
    "an embedding": (
        lambda: Net(lambda m, x: F.linear(m.words(x), m.words.weight), words=nn.Embedding(7, 4)),
        torch.tensor([[1, 2], [6, 0]]),
    ),
    "an embedding, multiplied": (
        lambda: Net(lambda m, x: m.words(x) @ m.words.weight.t(), words=nn.Embedding(7, 4)),
        torch.tensor([[1, 2], [6, 0]]),
    ),
}


@pytest.mark.parametrize(("make", "x"), BORROWED.values(), ids=BORROWED)
def test_a_weight_may_be_of_a_module_that_is_called_too(
    make: Callable[[], nn.Module], x: torch.Tensor
) -> None:
    model = make()
    quantized = fxquant.quantize(model, [x], "minmax")
    assert relative_error(outputs(quantized, x), outputs(model, x)) < 0.05
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert len(layers) == (1 if hasattr(model, "words") else 2)


PADDINGS: list[Callable[[Any], Any]] = [
    lambda x: (x.shape[3] // 2, x.shape[3] - 1),
    lambda x: [x.size(2) % 2, 0],
    lambda x: x.size(0),
    lambda x: x.shape[2:][1] // 4,
]


@pytest.mark.parametrize("padding", PADDINGS)
def test_zeros_are_put_on_before_a_layer_whose_padding_is_computed(
    padding: Callable[[Any], Any],
) -> None:
    model = Net(
        lambda m, x: F.conv2d(x, m.w, padding=padding(x), groups=2), w=parameter(4, 2, 3, 2)
    )
    gm = fxquant.trace(model)
    assert apply(LiftFunctionals(), gm)
    assert [type(each) for each in gm.children()] == [nn.Conv2d]
    for size in (4, 7):
        x = torch.randn(2, 4, 6, size)
        assert torch.equal(outputs(gm, x), outputs(model, x))


def test_a_plain_tensor_is_a_weight_too() -> None:
    plain = torch.randn(3, 5)
    model = Net(lambda m, x: F.linear(x, plain) + F.linear(x, m.kept), kept=torch.randn(3, 5))
    gm = fxquant.trace(model)
    assert apply(LiftFunctionals(), gm)
    assert [type(each) for each in gm.children()] == [nn.Linear, nn.Linear]
    x = x_of(1)
    assert torch.equal(outputs(gm, x), outputs(model, x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], int, dict[str, str]]] = {
    "a computed weight": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w * x.mean()), w=parameter(4, 4, 3, 3)),
        2,
        {"conv2d": "left in float: weight computed in the graph"},
    ),
    "a computed weight and bias": (
        lambda: Net(lambda m, x: F.linear(x, m.w * 2, m.w[0]), w=parameter(5, 5)),
        1,
        {"linear": "left in float: weight and bias computed in the graph"},
    ),
    "a padding that may be several numbers": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w, padding=x.shape[2:]), w=parameter(4, 4, 3, 3)),
        2,
        {"conv2d": "left in float: padding computed in the graph"},
    ),
    "a computed padding of a transposed convolution": (
        lambda: Net(
            lambda m, x: F.conv_transpose2d(x, m.w, padding=x.size(2) // 4),
            w=parameter(4, 4, 3, 3),
        ),
        2,
        {"conv_transpose2d": "left in float: padding computed in the graph"},
    ),
    "a computed option": (
        lambda: Net(
            lambda m, x: F.batch_norm(x, m.mean, m.var, eps=x.size(0)),
            mean=torch.zeros(4),
            var=torch.ones(4),
        ),
        2,
        {"batch_norm": "left in float: eps computed in the graph"},
    ),
    "batch norm without running statistics": (
        lambda: Net(lambda m, x: F.batch_norm(x, None, None, training=True)),
        2,
        {"batch_norm": "left in float: it normalizes by each batch's own statistics"},
    ),
    "batch norm in training mode": (
        lambda: Net(
            lambda m, x: F.batch_norm(x, m.mean, m.var, training=True),
            mean=torch.zeros(4),
            var=torch.ones(4),
        ),
        2,
        {"batch_norm": "left in float: it normalizes by each batch's own statistics"},
    ),
}


@pytest.mark.parametrize(("make", "axes", "refused"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_is_not_constant(
    make: Callable[[], nn.Module], axes: int, refused: dict[str, str]
) -> None:
    model, x = make(), x_of(axes)
    gm = fxquant.trace(model)
    assert not apply(LiftFunctionals(), gm)
    assert refusals(gm) == {name: (reason,) for name, reason in refused.items()}
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_leaves_a_linear_call_with_a_vector_for_weight_as_it_is() -> None:
    model = Net(lambda m, x: F.linear(x, m.w), w=parameter(5))
    gm = fxquant.trace(model)
    x = x_of(1)
    assert not apply(LiftFunctionals(), gm)
    assert torch.equal(outputs(gm, x), outputs(model, x))


def test_the_callers_parameters_stay_his() -> None:
    model = LIFTED["conv2d"][0]()
    before = copy.deepcopy(model.state_dict())
    gm = fxquant.trace(model)
    apply(LiftFunctionals(), gm)
    nn.init.zeros_(gm.get_parameter("conv2d.weight"))
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
