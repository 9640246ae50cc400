"""ToQdq says in PyTorch's own operators what the fake-quantized graph computes."""

import re
from collections.abc import Callable
from inspect import cleandoc

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import PassError, Recipe, TensorSpec
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.passes import ToQdq
from tests.helpers import Net, apply, graph_text, outputs, refusals, whole

MINMAX = Recipe.minmax()
IMAGE = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(0))

BRANCHES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Recipe]] = {
    "per channel": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (8, 9, 9), MINMAX),
    "per tensor": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe(weights=TensorSpec(symmetric=True)),
    ),
    "asymmetric, per channel": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe(weights=TensorSpec(per_channel=True)),
    ),
    "asymmetric, per tensor": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe(weights=TensorSpec()),
    ),
    "4 bits": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe.minmax(weight_bits=4, activation_bits=4),
    ),
    "signed grid": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe(activations=TensorSpec(symmetric=True)),
    ),
    "weights only": (lambda: nn.Conv2d(8, 6, 3), (8, 9, 9), Recipe.minmax(activation_bits=None)),
    "per-channel activations": (
        lambda: nn.Conv2d(8, 6, 3),
        (8, 9, 9),
        Recipe(activations=TensorSpec(per_channel=True)),
    ),
    "no bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), (8, 9, 9), MINMAX),
    "grouped, dilated": (lambda: nn.Conv2d(8, 6, 3, groups=2, dilation=2), (8, 9, 9), MINMAX),
    "padded by reflection": (
        lambda: nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="reflect"),
        (8, 9, 9),
        MINMAX,
    ),
    "padded to the same size": (lambda: nn.Conv2d(8, 6, 3, padding="same"), (8, 9, 9), MINMAX),
    "1-D": (lambda: nn.Conv1d(8, 6, 3, padding=1), (8, 9), MINMAX),
    "3-D": (lambda: nn.Conv3d(8, 6, 2), (8, 3, 4, 5), MINMAX),
    "linear": (lambda: nn.Linear(8, 6), (3, 8), MINMAX),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (8, 5, 5), MINMAX),
    "transposed, grouped": (
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2),
        (8, 5, 5),
        MINMAX,
    ),
    "transposed, grouped, asymmetric": (
        lambda: nn.ConvTranspose1d(8, 6, 3, groups=2),
        (8, 5),
        Recipe(weights=TensorSpec(per_channel=True)),
    ),
    "transposed, 3-D": (lambda: nn.ConvTranspose3d(8, 6, 2), (8, 2, 3, 4), MINMAX),
}


def quantized(model: nn.Module, x: Tensor, recipe: Recipe = MINMAX) -> fx.GraphModule:
    return whole(fxquant.quantize(model, [x], recipe, progress=False))


def text_without_scales(gm: fx.GraphModule) -> str:
    return re.sub(r"(?<=, )\d+\.\d+(e-\d+)?(?=,)", "s", graph_text(gm))


def test_writes_standard_operators() -> None:
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1))
    gm = quantized(model, IMAGE.abs())
    expected = outputs(gm, IMAGE)
    assert apply(ToQdq(), gm)
    q, dq = "quantized_decomposed.quantize", "quantized_decomposed.dequantize"
    text = cleandoc(f"""
        input_1 = input()
        quantize_per_tensor_default = {q}_per_tensor.default(input_1, s, 0, 0, 255, torch.uint8)
        dequantize_per_tensor_default = {dq}_per_tensor.default(quantize_per_tensor_default, \
        s, 0, 0, 255, torch.uint8)
        _0_weight_integers = self.0.weight_integers
        _0_weight_scale = self.0.weight_scale
        _0_weight_zero_point = self.0.weight_zero_point
        dequantize_per_channel_default = {dq}_per_channel.default(_0_weight_integers, \
        _0_weight_scale, _0_weight_zero_point, 0, -128, 127, torch.int8)
        _0_bias = self.0.bias
        _0 = torch.conv2d(dequantize_per_tensor_default, dequantize_per_channel_default, \
        _0_bias, (1, 1), (0, 0), (1, 1), 1)
        _1 = self.1(_0) # ReLU · fused into _0
        quantize_per_tensor_default_1 = {q}_per_tensor.default(_1, s, 0, 0, 255, torch.uint8)
        dequantize_per_tensor_default_1 = {dq}_per_tensor.default(quantize_per_tensor_default_1, \
        s, 0, 0, 255, torch.uint8)
        _2 = self.2(dequantize_per_tensor_default_1) # MaxPool2d
        _3_weight_integers = self.3.weight_integers
        _3_weight_scale = self.3.weight_scale
        _3_weight_zero_point = self.3.weight_zero_point
        dequantize_per_channel_default_1 = {dq}_per_channel.default(_3_weight_integers, \
        _3_weight_scale, _3_weight_zero_point, 0, -128, 127, torch.int8)
        _3_bias = self.3.bias
        _3 = torch.conv2d(_2, dequantize_per_channel_default_1, _3_bias, (1, 1), (0, 0), (1, 1), 1)
        return _3
    """)
    assert text_without_scales(gm) == re.sub(" +", " ", text)
    assert torch.equal(outputs(gm, IMAGE), expected)
    assert not apply(ToQdq(), gm)


@pytest.mark.parametrize(("make", "shape", "recipe"), BRANCHES.values(), ids=BRANCHES)
def test_computes_the_same(
    make: Callable[[], nn.Module], shape: tuple[int, ...], recipe: Recipe
) -> None:
    x = torch.randn(4, *shape)
    gm = quantized(nn.Sequential(make(), nn.ReLU(), nn.Flatten(2)), x, recipe)
    expected = outputs(gm, 2 * x)
    assert apply(ToQdq(), gm)
    assert torch.equal(outputs(gm, 2 * x), expected)
    assert not any(isinstance(each, FakeQuantize) for each in gm.modules())
    assert not apply(ToQdq(), gm)


def test_activations_of_16_bits_stay_with_a_reason() -> None:
    recipe = Recipe.minmax(activation_bits=16)
    gm = quantized(nn.Sequential(nn.Linear(8, 4)), torch.randn(3, 8), recipe)
    expected = outputs(gm, torch.ones(3, 8))
    assert apply(ToQdq(), gm)
    assert torch.equal(outputs(gm, torch.ones(3, 8)), expected)
    assert refusals(gm) == {
        "quantizers_input_1": ("stays simulated: activations of 16 bits: choose 2 to 8",)
    }
    assert not apply(ToQdq(), gm)


@pytest.mark.parametrize(("make", "shape", "recipe"), BRANCHES.values(), ids=BRANCHES)
def test_is_exported_with_a_batch_of_any_size(
    make: Callable[[], nn.Module], shape: tuple[int, ...], recipe: Recipe
) -> None:
    gm = quantized(nn.Sequential(make(), nn.ReLU()), torch.randn(4, *shape), recipe)
    apply(ToQdq(), gm)
    batch = torch.export.Dim("batch")
    program = torch.export.export(gm, (torch.randn(3, *shape),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, *shape)
    assert torch.equal(program.module()(x), outputs(gm, x))
    tensors = {**program.state_dict, **program.constants}
    assert tensors["0.weight_integers"].dtype is torch.int8
    assert all(tensor.dim() <= 1 for tensor in tensors.values() if tensor.is_floating_point())


def test_writes_two_calls_of_one_layer() -> None:
    gm = quantized(Net(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(5, 5)), torch.randn(4, 5))
    x = torch.randn(3, 5)
    expected = outputs(gm, x)
    assert apply(ToQdq(), gm)
    assert graph_text(gm).count("= F.linear(") == 2
    assert torch.equal(outputs(gm, x), expected)


def test_leaves_activations_with_a_scale_for_each_channel_if_told_so() -> None:
    recipe = Recipe(activations=TensorSpec(per_channel=True))
    gm = quantized(nn.Sequential(nn.Conv2d(8, 6, 3)), IMAGE, recipe)
    expected = outputs(gm, IMAGE)
    assert apply(ToQdq(per_channel=False), gm)
    assert sum(isinstance(each, FakeQuantize) for each in gm.modules()) == 1
    assert not apply(ToQdq(per_channel=False), gm)
    assert apply(ToQdq(), gm)
    assert torch.equal(outputs(gm, IMAGE), expected)


def test_leaves_a_float_graph_alone() -> None:
    assert not apply(ToQdq(), fxquant.trace(nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())))


def test_the_function_leaves_the_model_as_it_is() -> None:
    gm = quantized(nn.Sequential(nn.Conv2d(8, 6, 3)), IMAGE)
    before = graph_text(gm)
    exposed = fxquant.to_qdq(gm)
    assert graph_text(gm) == before
    assert torch.equal(outputs(exposed, IMAGE), outputs(gm, IMAGE))


def test_the_function_takes_converted_models_only() -> None:
    with pytest.raises(PassError, match=r"^to_qdq: got a prepared model: give what fxquant\.conv"):
        fxquant.to_qdq(fxquant.prepare(nn.Sequential(nn.Linear(4, 2))))
