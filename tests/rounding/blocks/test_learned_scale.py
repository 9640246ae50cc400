"""Rounded activations have LSQ's gradients, and dropped elements stay in float."""

import pytest
import torch
from torch import Tensor

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid
from fxquant.recipe.spec import TensorSpec
from fxquant.rounding.blocks.learned_scale import Drops, round_activation
from tests.helpers import quantizer

FOUR_BITS = Grid(0, 15)


def gradients(
    each: FakeQuantize, values: list[float], dropped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the sum by the tensor and by the scale."""
    x = torch.tensor(values, requires_grad=True)
    scale = each.scale.clone().requires_grad_()
    y = round_activation(each, x, {each: scale}, dropped)
    by_x, by_scale = torch.autograd.grad(y.sum(), (x, scale))
    return by_x, by_scale


def test_values_are_the_quantizers_own() -> None:
    x = torch.randn(64, 8) * 3
    for each in (quantizer(0.1, 6, FOUR_BITS), DynamicQuantize(TensorSpec(bits=4))):
        torch.testing.assert_close(round_activation(each, x, {}), each(x), rtol=0, atol=1e-6)


def test_float64_is_rounded_as_float32_is() -> None:
    x, each = torch.randn(64, 8) * 3, quantizer(0.1, 6, FOUR_BITS)
    dropped = Drops(0.5, torch.Generator().manual_seed(0)).draw(x)
    wide = round_activation(each, x.double(), {}, dropped)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), round_activation(each, x, {}, dropped))


def test_channels_have_their_own_scales_and_gradients() -> None:
    scales, zeros = torch.tensor([0.1, 1.0]), torch.zeros(2, dtype=torch.int32)
    affine = Affine(scales, zeros, FOUR_BITS)
    each = FakeQuantize(affine, TensorSpec(per_channel=True), 40.0, axis=-2)
    x = torch.tensor([[[0.14], [0.14]]])
    torch.testing.assert_close(round_activation(each, x, {}), each(x))
    scale = scales.clone().requires_grad_()
    (by_scale,) = torch.autograd.grad(round_activation(each, x, {each: scale}).sum(), scale)
    torch.testing.assert_close(by_scale, torch.tensor([1 - 1.4, 0 - 0.14]))


def test_gradients_are_those_of_learned_step_sizes() -> None:
    each = quantizer(0.5, 4, FOUR_BITS)  # from -2 to 5.5
    by_x, by_scale = gradients(each, [-9.0, 0.6, 9.0])
    assert by_x.tolist() == [0, 1, 0]
    torch.testing.assert_close(by_scale, torch.tensor(-4 + (1 - 1.2) + 11))


def test_dropped_elements_are_as_they_were_and_move_no_scale() -> None:
    each = quantizer(0.5, 4, FOUR_BITS)
    dropped = torch.tensor([1.0, 1.0, 0.0])
    x = torch.tensor([-9.0, 0.6, 9.0])
    assert round_activation(each, x, {}, dropped).tolist() == torch.tensor([-9, 0.6, 5.5]).tolist()
    by_x, by_scale = gradients(each, x.tolist(), dropped)
    assert by_x.tolist() == [1, 1, 0]
    assert by_scale.item() == 11


def test_gradients_go_straight_through_a_dynamic_quantizer() -> None:
    x = torch.tensor([-1.0, 0.3, 1.0], requires_grad=True)
    y = round_activation(DynamicQuantize(TensorSpec(bits=2)), x, {})
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]


def test_half_precision_keeps_its_type_and_integers_their_values() -> None:
    each = quantizer(0.5, 4, FOUR_BITS)
    x = torch.tensor([0.6, 9.0], dtype=torch.bfloat16)
    assert torch.equal(round_activation(each, x, {}), each(x))
    tokens = torch.tensor([3, 99])
    assert round_activation(each, tokens, {}) is tokens


def test_bits_have_the_probability_and_the_memory_format() -> None:
    drops = Drops(0.25, torch.Generator().manual_seed(0))
    value = torch.empty(8, 16, 10, 10).contiguous(memory_format=torch.channels_last)
    first, second = drops.draw(value), drops.draw(value)
    assert first is not None
    assert second is not None
    assert first.shape == value.shape
    assert first.stride() == value.stride()
    assert 0.23 < first.mean() < 0.27
    assert not torch.equal(first, second)
    assert set(torch.unique(first).tolist()) == {0.0, 1.0}
    assert Drops(0.0, torch.Generator()).draw(value) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_in_parts_values_and_gradients_are_those_of_autograd(
    dtype: torch.dtype, is_last: bool, drop: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    each = quantizer(0.47, 4, FOUR_BITS)  # no value lies between two integers
    shape = (3, 16, 60, 60)  # three parts
    x = (torch.randn(shape, generator=generator) * 4).to(dtype)
    given = torch.randn(shape, generator=generator).to(dtype)
    if is_last:
        x = x.contiguous(memory_format=torch.channels_last)
    dropped = Drops(drop, generator).draw(x)
    x.requires_grad_()
    scale = each.scale.clone().requires_grad_()
    y = round_activation(each, x, {each: scale}, dropped)
    by_x, by_scale = torch.autograd.grad(y, (x, scale), given)

    wide = x.detach().double().requires_grad_()
    step = each.scale.double().requires_grad_()
    steps = wide / step
    passes = (steps.round() == steps.round().clamp(-4, 11)).double()
    rounded = (steps * passes + (steps.round().clamp(-4, 11) - steps * passes).detach()) * step
    if dropped is not None:
        rounded = torch.where(dropped > 0, wide, rounded)
    of_x, of_scale = torch.autograd.grad(rounded, (wide, step), given.double())
    assert y.dtype == by_x.dtype == dtype
    torch.testing.assert_close(y.double(), rounded, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(by_x.double(), of_x, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(by_scale.double(), of_scale, rtol=2e-2, atol=1.0)
