"""LowerLayers: the layers, with what is behind them, compute on integers what they simulated."""

import math
from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe, Rule, TensorSpec
from fxquant.graph.records import annotate, value_of
from fxquant.int8 import checked
from fxquant.int8.integers import affine_of
from fxquant.int8.modules import Int8Conv, Int8Layer, Int8Linear
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import LowerLayers, SinkDequantize, SplitQuantizers
from tests.helpers import (
    Net,
    apply,
    assert_same,
    graph_text,
    needs_int8,
    node,
    outputs,
    refusals,
    short_text,
    simulated,
)

pytestmark = needs_int8
Function = Callable[[Any, Any], Any]


def images(batch: int = 2, channels: int = 4, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size)


def conv(inputs: int = 4, outputs: int = 4, width: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, width, **{"padding": width // 2, **options})


def identity(num: int = 2) -> nn.Conv2d:
    """Return a convolution that computes its input, so that ranges are known."""
    layer = nn.Conv2d(num, num, 1, bias=False)
    nn.init.dirac_(layer.weight)
    return layer


def on_integers(quantized: fx.GraphModule) -> fx.GraphModule:
    """Return a copy with its quantizers split, ready for `LowerLayers`."""
    gm = fxquant.trace(quantized)
    apply(SplitQuantizers(), gm)
    apply(SinkDequantize(), gm)
    return gm


def lowered(
    function: Function, x: Tensor | None = None, recipe: Recipe | None = None, **parts: Any
) -> fx.GraphModule:
    """Return a model behind `LowerLayers`, whose outputs were checked."""
    x = images() if x is None else x
    quantized = simulated(Net(function, **parts), x, recipe)
    gm = on_integers(quantized)
    assert apply(LowerLayers(), gm)
    assert_same(outputs(gm, x), outputs(quantized, x))
    text = graph_text(gm)
    assert not apply(LowerLayers(), gm)
    assert graph_text(gm) == text
    return gm


def layers(gm: nn.Module) -> dict[str, Int8Layer]:
    return {name: each for name, each in gm.named_modules() if isinstance(each, Int8Layer)}


def names(gm: fx.GraphModule) -> list[str]:
    return [each.name for each in gm.graph.nodes][1:-1]


def test_takes_the_addition_the_relu_and_the_quantization_along() -> None:
    x = torch.linspace(-1, 2, 16).reshape(1, 2, 2, 4)
    model = Net(
        lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu()),
        a=identity(), b=identity(), c=identity(),
    )  # fmt: skip
    quantized = simulated(model, x)
    gm = on_integers(quantized)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.01176, 85, 255)
        dequantize = kernels.dequantize(quantize, 0.01176, 85)
        a = self.a(dequantize) # QuantizedConv2d · fused: relu
        relu = a.relu() # fused into a
        quantize_1 = kernels.quantize(relu, 0.007843, 0, 255)
        dequantize_1 = kernels.dequantize(quantize_1, 0.007843, 0)
        b = self.b(dequantize_1) # QuantizedConv2d
        add = operator.add(b, dequantize_1) # fused: relu_1
        relu_1 = add.relu() # fused into add
        quantize_2 = kernels.quantize(relu_1, 0.01569, 0, 255)
        dequantize_2 = kernels.dequantize(quantize_2, 0.01569, 0)
        c = self.c(dequantize_2) # QuantizedConv2d
        return c
    """)
    assert apply(LowerLayers(), gm)
    assert short_text(gm) == cleandoc("""
        x = input()
        quantize = kernels.quantize(x, 0.01176, 85, 255)
        a = self.a(quantize) # Int8Conv + relu → uint8 scale=0.007843 zero_point=0
        b = self.b(a, a) # Int8Conv + relu + add → uint8 scale=0.01569 zero_point=0
        c = self.c(b) # Int8Conv → float32
        return c
    """)
    assert_same(outputs(gm, x), outputs(quantized, x))
    assert not apply(LowerLayers(), gm)
    assert [value_of(each) for each in gm.graph.nodes][2:5] == [
        "quantizers_relu", "quantizers_relu_1", "c"
    ]  # fmt: skip


ACTIVATIONS: dict[str, tuple[nn.Module, tuple[bool, bool, bool]]] = {
    # Whether the kernel of a Conv2d, Conv1d, Linear computes it.
    "ReLU": (nn.ReLU(), (True, True, True)),
    "ReLU, in place": (nn.ReLU(inplace=True), (True, True, True)),
    "ReLU6": (nn.ReLU6(), (True, True, True)),
    "Hardtanh": (nn.Hardtanh(0, 0.3), (True, True, True)),
    "SiLU": (nn.SiLU(), (True, False, True)),
    "Hardswish": (nn.Hardswish(), (True, False, True)),
    "GELU": (nn.GELU(), (False, False, True)),
    "GELU, tanh": (nn.GELU("tanh"), (False, False, True)),
    "Tanh": (nn.Tanh(), (False, False, True)),
    "Sigmoid": (nn.Sigmoid(), (False, False, False)),
    "LeakyReLU": (nn.LeakyReLU(), (False, False, False)),
}
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda: conv(), (2, 4, 8, 8)),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 3), (2, 4, 20)),
    "Linear": (lambda: nn.Linear(8, 8), (9, 8)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", range(3), ids=KINDS)
@pytest.mark.parametrize("is_last", [False, True], ids=["quantized", "in float"])
def test_takes_the_activation_functions_along_that_a_kernel_knows(
    activation: str, place: int, is_last: bool
) -> None:
    module, known = ACTIVATIONS[activation]
    make_layer, shape = list(KINDS.values())[place]
    parts: dict[str, Any] = {"a": make_layer(), "act": module, "b": make_layer()}

    def function(m: Any, x: Any) -> Any:
        y = m.act(m.a(x))
        return y if is_last else m.b(y)

    gm = lowered(function, torch.randn(shape), **parts)
    assert ("act" in names(gm)) is not known[place]
    (output,) = [layer.output for name, layer in layers(gm).items() if name == "a"]
    assert (output is None) is (is_last or not known[place])


@pytest.mark.parametrize("factor", [0.1, 100.0], ids=["range ends below 6", "range is cut at 6"])
def test_a_relu6_ends_where_its_range_does(factor: float) -> None:
    layer = conv()
    with torch.no_grad():
        layer.weight.mul_(factor)
    gm = lowered(lambda m, x: m.b(F.relu6(m.a(x))), a=layer, b=conv())
    a = gm.get_submodule("a")
    assert isinstance(a, Int8Conv)
    assert a.clamp == (0.0, 6.0)
    assert a.result[2:] == (0, 255)


def test_a_relu_bounds_a_result_whose_grid_holds_negative_values() -> None:
    # cat: x · 3 shares its parameters, and is negative too
    gm = lowered(lambda m, x: m.b(torch.cat([m.a(x).relu(), x * 3], 1)), a=conv(), b=conv(inputs=8))
    a = gm.get_submodule("a")
    assert isinstance(a, Int8Conv)
    assert a.output is not None
    assert a.output.zero_point > 100
    assert a.result[2:] == (a.output.zero_point, 255)


@pytest.mark.parametrize("shape", [(9, 8), (2, 3, 8), (8,)])
def test_linear_layers_take_any_number_of_axes(shape: tuple[int, ...]) -> None:
    gm = lowered(
        lambda m, x: m.b(m.a(x).relu()),
        torch.randn(shape),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 4),
    )
    assert names(gm) == ["quantize", "a", "b"]


def test_convolutions_take_inputs_without_a_batch() -> None:
    gm = lowered(
        lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu()),
        images()[0],
        a=conv(), b=conv(), c=conv(),
    )  # fmt: skip
    assert names(gm) == ["quantize", "a", "b", "c"]


CONVOLUTIONS: dict[str, nn.Module] = {
    "grouped": conv(groups=2),
    "depthwise": conv(groups=4),
    "strided": conv(stride=2),
    "dilated": conv(dilation=2, padding=2),
    "no bias": conv(bias=False),
    "same": conv(width=5, padding="same"),
    "same, even but dilated": nn.Conv2d(4, 4, 4, padding="same", dilation=2),
    "valid": conv(padding="valid"),
}


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_lowers_every_convolution_with_the_same_zeros_on_both_sides(layer: nn.Module) -> None:
    gm = lowered(lambda m, x: m.b(m.a(x)), a=conv(), b=layer)  # the zero-point of `b` is not 0
    assert names(gm) == ["quantize", "a", "b"]


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "transposed": (
        nn.ConvTranspose2d(4, 4, 2, 2),
        "there is no int8 kernel for transposed convolutions",
    ),
    "reflect": (
        conv(padding_mode="reflect"),
        "there is no int8 kernel for padding_mode='reflect'",
    ),
    "circular": (
        conv(padding_mode="circular"),
        "there is no int8 kernel for padding_mode='circular'",
    ),
    "same, even": (
        conv(width=4, padding="same"),
        "its padding 'same' differs on the two sides",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_what_there_is_no_kernel_for(kind: str) -> None:
    layer, reason = REFUSED[kind]
    gm = lowered(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(), b=layer, c=conv())
    assert refusals(gm) == {"b": (f"not lowered: {reason}",)}
    assert list(layers(gm)) == ["a", "c"]
    assert names(gm) == ["quantize", "a", "dequantize_1", "b", "relu_1", "quantize_2", "c"]


def test_refuses_a_layer_whose_kernel_is_wrong_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("direct", "plain"):
        kernel = getattr(checked, name)

        def faulty(*arguments: Any, kernel: Any = kernel) -> Tensor:
            y: Tensor = kernel(*arguments)
            is_wrong = arguments[1].integers.shape == (5, 4, 2, 2)
            return y.clamp(max=246) + 9 if is_wrong else y

        monkeypatch.setattr(checked, name, faulty)
    parts: dict[str, Any] = {"a": conv(), "b": conv(outputs=5, width=2), "c": conv(5)}
    gm = lowered(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), **parts)
    reason = "oneDNN's kernel is wrong by 9 steps of 255"
    assert refusals(gm) == {"b": (f"not lowered: {reason}",)}
    assert list(layers(gm)) == ["a", "c"]
    assert all(layer.verify for layer in layers(gm).values())
    quantized = simulated(Net(lambda m, x: m.c(m.b(m.a(x))), **parts), images())
    trusting = on_integers(quantized)
    assert apply(LowerLayers(verify=False), trusting)
    assert refusals(trusting) == {}
    assert not any(layer.verify for layer in layers(trusting).values())


@pytest.mark.parametrize(
    "shape", [(2, 4), (2, 3, 8, 8), (-1, 4, 8, 8), (2, 4, 1, 0), (2, 4, 2**20, 2**20), ()], ids=str
)
def test_a_shape_that_a_file_made_up_is_not_checked(shape: tuple[int, ...]) -> None:
    gm = on_integers(simulated(Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()), images()))
    annotate(node(gm, "a"), input_shape=shape)
    assert apply(LowerLayers(), gm)
    assert list(layers(gm)) == ["a", "b"]


def test_refuses_weights_with_zero_points() -> None:
    recipe = Recipe.minmax(rules=(Rule("b", weights=TensorSpec(per_channel=True)),))
    gm = lowered(lambda m, x: m.b(m.a(x).relu()), None, recipe, a=conv(), b=conv())
    reason = "its weight has zero-points (symmetric=False), and the kernels take none"
    assert refusals(gm) == {"b": (f"not lowered: {reason}",)}


def test_refuses_a_layer_whose_input_is_in_float() -> None:
    recipe = Recipe.minmax(rules=(Rule("b", activations=None),))
    gm = lowered(lambda m, x: m.b(m.a(x).exp()), None, recipe, a=conv(), b=conv())
    assert refusals(gm) == {"b": ("not lowered: its input is in float",)}


def test_refuses_a_layer_behind_per_channel_activations_and_16_bits() -> None:
    per_channel = TensorSpec(per_channel=True)
    for activations in (per_channel, 16):
        recipe = Recipe.minmax(rules=(Rule("b", activations=activations),))
        gm = lowered(lambda m, x: m.b(m.a(x).relu()), None, recipe, a=conv(), b=conv())
        assert refusals(gm)["b"] == ("not lowered: its input is in float",)
        (quantizer,) = [reasons for name, reasons in refusals(gm).items() if name != "b"]
        assert quantizer[0].startswith("not lowered: ")


def test_each_call_of_a_shared_layer_has_its_own_quantizers() -> None:
    gm = lowered(lambda m, x: m.b(F.silu(m.a(m.a(x).relu() * 3))), a=conv(), b=conv())
    assert list(layers(gm)) == ["a", "b", "a_1"]
    one, other = layers(gm)["a"], layers(gm)["a_1"]
    assert one.output != other.output
    assert one.input != other.input
    assert one.weight_integers is other.weight_integers
    assert not any(isinstance(module, QuantizedLayer) for module in gm.modules())


@pytest.mark.parametrize("in_float_first", [True, False])
def test_a_shared_layer_may_be_lowered_in_one_of_its_calls(in_float_first: bool) -> None:
    def function(m: Any, x: Any) -> Any:
        y = x * 2
        z = m.a(y)
        F.relu_(y)  # changed in place between two that read it: it stays in float
        inputs = (y, x) if in_float_first else (x, y)
        return m.b(inputs[0]) - m.b(inputs[1]) + z

    gm = lowered(function, a=conv(), b=conv())
    assert list(layers(gm)) == ["b_1"]
    assert isinstance(gm.get_submodule("b"), QuantizedLayer)
    assert list(refusals(gm).values())[-1] == ("not lowered: its input is in float",)


def test_a_result_that_others_read_too_is_not_fused_with_what_is_behind() -> None:
    gm = lowered(lambda m, x: (y := m.a(x), m.b(y.relu()) + y.exp())[-1], a=conv(), b=conv())
    assert layers(gm)["a"].output is None
    assert names(gm) == ["quantize", "a", "relu", "quantize_1", "b", "exp", "add"]


def test_integers_and_floats_of_one_result_are_both_read() -> None:
    gm = lowered(lambda m, x: (y := m.a(x).relu(), m.b(y) + y.exp())[-1], a=conv(), b=conv())
    assert names(gm) == ["quantize", "a", "quantize_1", "b", "exp", "add"]


ADDITIONS: dict[str, tuple[Function, list[str]]] = {
    "of two layers": (lambda m, x: m.c((m.a(x) + m.b(x)).relu()), ["quantize", "a", "b", "c"]),
    "operand first": (
        lambda m, x: m.c((y := m.a(x).relu()) + m.b(y)),
        ["quantize", "a", "b", "c"],
    ),
    "in place": (
        lambda m, x: (y := m.a(x).relu(), z := m.b(y), m.c(F.relu_(z.add_(y))))[-1],
        ["quantize", "a", "b", "c"],
    ),
    "its own input": (lambda m, x: m.c(m.b(x) + x), ["quantize", "b", "c"]),
    "operand behind a pool": (
        lambda m, x: m.c(m.b(x) + F.max_pool2d(x, 3, 1, 1)),
        ["quantize", "max_pool2d", "b", "c"],
    ),
    "operand of another shape": (
        lambda m, x: m.c(m.b(x) + x.amax((2, 3), keepdim=True)),
        ["quantize", "amax", "b", "c"],
    ),
    "operand with another batch": (
        lambda m, x: m.c(m.b(x[:1]) + x),
        ["quantize", "getitem", "b", "c"],
    ),
}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_a_convolution_takes_an_addition_along(kind: str) -> None:
    function, expected = ADDITIONS[kind]
    gm = lowered(function, a=conv(), b=conv(), c=conv())
    assert names(gm) == expected
    assert layers(gm)["b"].other is not None


def test_a_parameter_may_be_the_operand() -> None:
    for shape in ((4, 1, 1), (2, 4, 8, 8)):
        gm = lowered(
            lambda m, x: m.c((m.b(x) + m.p).relu()),
            b=conv(), c=conv(), p=nn.Parameter(torch.randn(shape)),
        )  # fmt: skip
        assert layers(gm)["b"].other is not None


NOT_TAKEN: dict[str, tuple[Function, list[str]]] = {
    "y + y": (lambda m, x: (y := m.a(x)) + y, ["quantize", "a", "add"]),
    "y + y, quantized": (
        lambda m, x: m.c((y := m.a(x)) + y),
        ["quantize", "a", "dequantize_1", "add", "quantize_2", "c"],
    ),
    "result in float": (
        lambda m, x: m.a(x) + x,
        ["quantize", "a", "add"],
    ),
    "SiLU behind": (
        lambda m, x: m.c(F.silu(m.a(x) + x)),
        ["quantize", "a", "add", "silu", "quantize_1", "c"],
    ),
    "scaled": (
        lambda m, x: m.c(torch.add(m.a(x), x, alpha=2)),
        ["quantize", "a", "add", "quantize_1", "c"],
    ),
    "of a number": (lambda m, x: m.c(m.a(x) + 1), ["quantize", "a", "add", "quantize_1", "c"]),
}


@pytest.mark.parametrize("kind", NOT_TAKEN)
def test_leaves_all_other_additions(kind: str) -> None:
    function, expected = NOT_TAKEN[kind]
    gm = lowered(function, a=conv(), c=conv())
    assert [name for name in names(gm) if name != "dequantize"] == expected
    assert all(layer.other is None for layer in layers(gm).values())


def test_a_linear_layer_takes_no_addition_along() -> None:
    gm = lowered(
        lambda m, x: m.c((m.b(y := m.a(x).relu()) + y).relu()),
        torch.randn(9, 8),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8),
    )  # fmt: skip
    assert isinstance(layers(gm)["b"], Int8Linear)
    assert names(gm) == [
        "quantize", "a", "dequantize_1", "b", "add", "relu_1", "quantize_2", "c"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.fc(m.a(x).relu().view(2, -1)),
        lambda m, x: m.fc(F.max_pool2d(m.a(x), 1).view(x.size(0), 256)),
        lambda m, x: m.a(x).view(2, -1).exp(),
        lambda m, x: m.a(x).view_as(x.flatten(1)),
    ],
)
def test_a_view_of_what_is_channels_last_is_a_reshape(function: Function) -> None:
    text = graph_text(lowered(function, a=conv(), fc=nn.Linear(256, 3)))
    assert ".reshape" in text
    assert ".view" not in text


@pytest.mark.parametrize("view", ["view", "reshape"])
def test_what_is_changed_through_a_view_stays_what_is_read(view: str) -> None:
    gm = lowered(
        lambda m, x: (y := m.a(x).relu(), getattr(y, view)(2, -1).add_(1), m.b(y))[-1],
        a=conv(), b=conv(),
    )  # fmt: skip
    assert names(gm) == ["quantize", "a", "contiguous", view, "add_", "quantize_1", "b"]


@pytest.mark.parametrize("shuffle", [F.pixel_shuffle, F.pixel_unshuffle])
def test_pixels_are_shuffled_of_contiguous_volumes(shuffle: Any) -> None:
    lowered(lambda m, x: shuffle(m.a(x), 2), torch.randn(2, 2, 4, 4, 4), a=nn.Conv3d(2, 4, 1))
    layer = nn.PixelShuffle(2) if shuffle is F.pixel_shuffle else nn.PixelUnshuffle(2)
    gm = lowered(
        lambda m, x: m.s(m.a(x).relu()), torch.randn(2, 2, 4, 4, 4), a=nn.Conv3d(2, 4, 1), s=layer
    )
    assert names(gm) == ["quantize", "a", "contiguous", "s"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.a(x).exp().as_strided((2, 16), (16, 1)),
        lambda m, x: torch.as_strided(F.max_pool2d(m.a(x).relu(), 2), (2, 16), (16, 1)),
        lambda m, x: torch.as_strided((m.a(x) + x).relu(), (2, 16), (16, 1)),
        lambda m, x: torch.as_strided(m.b(F.adaptive_avg_pool2d(m.a(x), 4)), (2, 16), (16, 1)),
        lambda m, x: torch.view_as_real(torch.view_as_complex(m.a(x).unflatten(-1, (4, 2)))),
        lambda m, x: m.a(x) + m.b(m.a(x)).stride(1) / 64,
    ],
)
def test_calls_that_go_by_strides_find_those_of_the_simulation(function: Function) -> None:
    assert "contiguous" in names(lowered(function, a=conv(), b=conv()))


def test_a_view_as_another_type_stays_a_view() -> None:
    gm = lowered(lambda m, x: m.a(x).view(torch.int32).view(torch.float32), a=conv())
    assert node(gm, "view").target == node(gm, "view_1").target == "view"


def test_4_bits_stay_within_their_grid() -> None:
    recipe = Recipe.minmax(weight_bits=4, activation_bits=4)
    gm = lowered(
        lambda m, x: m.c((m.b(y := m.a(x)) + y).relu()), None, recipe, a=conv(), b=conv(), c=conv()
    )
    assert [affine_of(node(gm, name)).grid.quant_max for name in ("quantize", "a", "b")] == [15] * 3
    assert [layer.result.high for layer in layers(gm).values()] == [15, 15, math.inf]
    assert all(layer.weight_integers.abs().max() <= 8 for layer in layers(gm).values())


def test_a_symmetric_grid_is_moved() -> None:
    spec = TensorSpec(symmetric=True, bits=6)
    recipe = Recipe(weights=TensorSpec(symmetric=True), activations=spec)
    gm = lowered(lambda m, x: m.c(m.b(x) + x), None, recipe, b=conv(), c=conv())
    assert affine_of(node(gm, "quantize")).zero_point == 32
    assert layers(gm)["b"].output == affine_of(node(gm, "b"))


ASKED: dict[str, Function] = {
    "the layer's shape": lambda m, x: m.b((y := m.a(x)).relu()).reshape(y.shape[0], -1),
    "its ReLU's shape": lambda m, x: m.b(y := m.a(x).relu()).reshape(y.size(0), -1),
    "its rank": lambda m, x: m.b((y := m.a(x)).relu()).flatten(y.ndim - 2),
    "its type": lambda m, x: m.b((y := m.a(x)).relu()).to(y.dtype),
    "a tensor like it": lambda m, x: m.b((y := m.a(x)).relu()) + torch.ones_like(y),
    "a shape like its": lambda m, x: m.b((y := m.a(x)).relu()).reshape_as(y),
}


@pytest.mark.parametrize("function", ASKED.values(), ids=ASKED)
def test_what_asks_for_a_shape_or_a_type_keeps_no_layer_in_float(function: Function) -> None:
    gm = lowered(function, a=conv(), b=conv())
    assert [each.output is not None for each in layers(gm).values()] == [True, False]


def test_adds_into_a_layer_whose_rank_is_asked_for() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        torch._assert(y.ndim == 4, "four")
        return m.b((y + x).relu())

    gm = lowered(function, a=conv(), b=conv())
    assert [each.other is not None for each in layers(gm).values()] == [True, False]


def test_what_is_added_may_have_its_shape_from_the_layer() -> None:
    def function(m: Any, x: Any) -> Any:  # a feature pyramid; and a sum larger than the result
        y = m.a(F.avg_pool2d(x, 8))
        return m.b((y + F.interpolate(x, y.shape[-2:]) + x).relu()).reshape(y.shape[0], -1)

    gm = lowered(function, a=conv(), b=conv())
    assert [each.other is not None for each in layers(gm).values()] == [False, False]
