"""AdaQuant moves weights, scales and biases freely, by the gradient that it says."""

import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Clamp, Identity
from fxquant.rounding.methods.adaquant import learn_freely
from fxquant.rounding.methods.losses import Rows, SampledRows

TWO_BITS = Grid(-2, 1)


def rows(groups: int = 1, outputs: int = 4, inputs: int = 12) -> tuple[Rows, Tensor]:
    """Return rows with a last input of 1, and the weight without it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, 512, inputs, generator=generator).relu()
    x[..., 1:] += x[..., :1]
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    y = x @ weight.mT
    ones = torch.cat([x, torch.ones_like(x[..., :1])], dim=2)
    return Rows(ones, y, y.relu()), weight


def error(of: Rows, weight: Tensor, integers: Tensor, scale: Tensor, shift: Tensor) -> float:
    difference = torch.cat([integers * scale - weight, shift[..., None]], dim=2)
    return of.error(difference, Clamp())[0].item()


def start(weight: Tensor, per_channel: bool = True) -> Rounding:
    scale = weight.abs().amax(dim=2, keepdim=True) / 2
    if not per_channel:
        scale = scale.amax().expand_as(scale)
    return Rounding(weight, Affine(scale, torch.zeros_like(scale), TWO_BITS), per_channel)


def learned(of: Rows, rounding: Rounding, steps: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    return learn_freely(rounding, SampledRows(of, Clamp(), 128), steps, 0.02)


def test_the_error_falls_to_a_fraction() -> None:
    for groups in (1, 3):
        of, weight = rows(groups)
        rounding = start(weight)
        no_shift = torch.zeros(weight.shape[:2])
        before = error(of, weight, rounding.nearest(), rounding.affine.scale, no_shift)
        integers, scales, shift = learned(of, rounding)
        assert error(of, weight, integers, scales, shift) < 0.4 * before
        assert torch.equal(integers, integers.round().clamp(-2, 1))
        assert (scales > 0).all()


def test_one_scale_for_all_stays_one_scale() -> None:
    of, weight = rows()
    rounding = start(weight, per_channel=False)
    _, scales, _ = learned(of, rounding, steps=50)
    assert (scales == scales[0, 0]).all()
    assert scales.shape == (1, 4, 1)
    assert not torch.equal(scales, rounding.affine.scale)


def test_no_step_leaves_rounding_to_nearest() -> None:
    of, weight = rows()
    rounding = start(weight)
    integers, scales, shift = learned(of, rounding, steps=0)
    assert torch.equal(integers, rounding.nearest())
    assert torch.equal(scales, rounding.affine.scale)
    assert torch.equal(shift, torch.zeros(1, 4))


def test_a_bias_that_is_off_is_learned() -> None:
    of, weight = rows()
    scale = torch.full((1, 4, 1), 1e-3)
    grid = Grid(-1_000_000, 1_000_000)  # so fine that the weight alone is right
    rounding = Rounding(weight, Affine(scale, torch.zeros_like(scale), grid))
    off = Rows(of.inputs, of.outputs, of.outputs + 3e-3)
    loss = SampledRows(off, Identity(), 512)
    _, _, shift = learn_freely(rounding, loss, 1000, 0.5)
    torch.testing.assert_close(shift, torch.full((1, 4), 3e-3), rtol=0.1, atol=0)
