"""AdaQuant moves weights, scales and biases freely, by the gradient that it says."""

import torch
from torch import Tensor

from fxquant.rounding.activations import Clamp, Identity
from fxquant.rounding.adaquant import learn_freely
from fxquant.rounding.losses import Rows, SampledRows

LOW, HIGH = torch.tensor(-2.0), torch.tensor(1.0)


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


def start(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(dim=2, keepdim=True) / 2
    return scale, (weight / scale).round().clamp(LOW, HIGH)


def learned(
    of: Rows, weight: Tensor, *, steps: int = 300, per_channel: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    loss = SampledRows(of, Clamp(), 128)
    scale, _ = start(weight)
    return learn_freely(weight, scale, LOW, HIGH, loss, steps, 0.02, per_channel)


def test_the_error_falls_to_a_fraction() -> None:
    for groups in (1, 3):
        of, weight = rows(groups)
        scale, nearest = start(weight)
        before = error(of, weight, nearest, scale, torch.zeros(weight.shape[:2]))
        integers, scales, shift = learned(of, weight)
        assert error(of, weight, integers, scales, shift) < 0.4 * before
        assert torch.equal(integers, integers.round().clamp(LOW, HIGH))
        assert (scales > 0).all()


def test_one_scale_for_all_stays_one_scale() -> None:
    of, weight = rows()
    loss = SampledRows(of, Clamp(), 128)
    scale = start(weight)[0].amax().expand(1, 4, 1)
    _, scales, _ = learn_freely(weight, scale, LOW, HIGH, loss, 50, 0.02, False)
    assert (scales == scales[0, 0]).all()
    assert scales.shape == (1, 4, 1)
    assert not torch.equal(scales, scale)


def test_no_step_leaves_rounding_to_nearest() -> None:
    of, weight = rows()
    scale, nearest = start(weight)
    integers, scales, shift = learned(of, weight, steps=0)
    assert torch.equal(integers, nearest)
    assert torch.equal(scales, scale)
    assert torch.equal(shift, torch.zeros(1, 4))


def test_a_bias_that_is_off_is_learned() -> None:
    of, weight = rows()
    scale = torch.full((1, 4, 1), 1e-3)
    grid = torch.tensor(-1e6), torch.tensor(1e6)  # so fine that the weight alone is right
    off = Rows(of.inputs, of.outputs, of.outputs + 3e-3)
    loss = SampledRows(off, Identity(), 512)
    _, _, shift = learn_freely(weight, scale, *grid, loss, 1000, 0.5, True)
    torch.testing.assert_close(shift, torch.full((1, 4), 3e-3), rtol=0.1, atol=0)
