"""The hand-written gradients are autograd's, whichever loss is taken."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.rounding.methods.activations import Activation, Clamp, Differentiated, Identity
from fxquant.rounding.methods.losses import Loss, Moments, Rows, SampledRows, cheaper_loss
from fxquant.rounding.methods.shares import Share

ACTIVATIONS = [Identity(), Clamp(), Clamp(0.0, 0.5), Differentiated(F.silu)]


def make_rows(weight: Tensor, activation: Activation, num_rows: int = 96) -> Rows:
    """Return rows whose targets are noisy, so that the gradient is not 0."""
    groups, _, inputs = weight.shape
    x = torch.randn(groups, num_rows, inputs).relu()
    outputs = torch.bmm(x, weight.mT) + 0.1
    return Rows(x, outputs, activation(outputs + 0.1 * torch.randn_like(outputs)))


def gradient(loss: Loss, difference: Tensor, step: int = 0) -> Tensor:
    loss.difference.copy_(difference)
    loss.take_turn(step)
    loss.write_gradient()
    return loss.gradient.float()


def expected_gradient(rows: Rows, activation: Activation, difference: Tensor) -> Tensor:
    leaf = difference.clone().requires_grad_()
    y = rows.outputs + torch.bmm(rows.inputs, leaf.mT)
    loss = (activation(y) - rows.targets).square().sum() / len(rows)
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=["identity", "relu", "clamp", "silu"])
def test_gradient_of_sampled_rows_is_autograds(activation: Activation, groups: int) -> None:
    weight = torch.randn(groups, 4, 10) * 0.3
    rows = make_rows(weight, activation)
    difference = 0.1 * torch.randn_like(weight)
    actual = gradient(SampledRows(rows, activation, 1000), difference)
    torch.testing.assert_close(
        actual, expected_gradient(rows, activation, difference), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_gradient_of_moments_is_autograds(groups: int) -> None:
    weight = torch.randn(groups, 4, 10) * 0.3
    rows = make_rows(weight, Identity())
    difference = 0.1 * torch.randn_like(weight)
    actual = gradient(Moments(rows), difference)
    torch.testing.assert_close(
        actual, expected_gradient(rows, Identity(), difference), rtol=1e-5, atol=1e-5
    )


def test_steps_take_turns_with_the_rows() -> None:
    weight = torch.randn(1, 4, 20) * 0.3
    rows = make_rows(weight, Clamp(), 512)
    loss = SampledRows(rows, Clamp(), 128)
    difference = 0.1 * torch.randn_like(weight)
    parts = [gradient(loss, difference, step).clone() for step in range(5)]
    torch.testing.assert_close(parts[4], parts[0])
    assert not torch.equal(parts[1], parts[0])
    torch.testing.assert_close(
        sum(parts[:4], torch.zeros_like(weight)) / 4,
        expected_gradient(rows, Clamp(), difference),
        rtol=1e-4,
        atol=1e-6,
    )


def test_turns_may_be_copied_into_one_place_as_a_gpu_needs_it() -> None:
    weight = torch.randn(1, 4, 20) * 0.3
    rows = make_rows(weight, Clamp(), 512)
    loss, in_place = (SampledRows(rows, Clamp(), 128) for _ in range(2))
    in_place.can_replay = True
    places = [each.data_ptr() for each in in_place._turn]
    for step in range(5):
        expected = gradient(loss, torch.zeros_like(weight), step)
        assert torch.equal(gradient(in_place, torch.zeros_like(weight), step), expected)
    assert [each.data_ptr() for each in in_place._turn] == places


def test_bfloat16_products_lose_little_because_only_the_difference_is_rounded() -> None:
    weight = torch.randn(1, 16, 64)
    rows = make_rows(weight, Clamp(), 512)
    difference = 0.01 * torch.randn_like(weight)
    actual = gradient(SampledRows(rows, Clamp(), 512, torch.bfloat16), difference)
    expected = expected_gradient(rows, Clamp(), difference)
    assert (actual - expected).norm() < 0.01 * expected.norm()


def test_a_depthwise_layer_takes_fewer_rows() -> None:
    weight = torch.randn(8, 1, 9)
    loss = SampledRows(make_rows(weight, Clamp(), 2048), Clamp(), 1024)
    assert 128 <= loss._size < 160


def test_the_cheaper_loss_is_the_one_with_fewer_multiplications() -> None:
    narrow, wide = torch.randn(1, 8, 16), torch.randn(1, 8, 600)
    for weight, expected in ((narrow, Moments), (wide, SampledRows)):
        rows = make_rows(weight, Identity(), 512)
        assert type(cheaper_loss(rows, Identity(), 256, 1000)) is expected
    assert type(cheaper_loss(make_rows(narrow, Clamp()), Clamp(), 256, 1000)) is SampledRows


@pytest.mark.parametrize(
    "share",
    [Share(slice(None), slice(1, 3)), Share(slice(1, 3), slice(None))],
    ids=["outputs", "groups"],
)
def test_the_loss_of_a_share_is_that_of_its_outputs(share: Share) -> None:
    weight = torch.randn(3, 4, 20)
    rows = make_rows(weight, Clamp(), 128)
    difference = 0.1 * torch.randn_like(weight)
    for whole, part in (
        (SampledRows(rows, Clamp(), 1000), SampledRows(rows.of_all_ranks(share), Clamp(), 1000)),
        (Moments(rows), Moments(rows, share)),
    ):
        expected = share.of(gradient(whole, difference))
        actual = gradient(part, share.of(difference))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part.input_power, whole.input_power[share.groups])


def test_error_and_signal_are_sums_of_squares() -> None:
    inputs, targets = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0], [0.0]]])
    rows = Rows(inputs, inputs * 3, targets)
    error, signal = rows.error(torch.tensor([[[-2.0]]]), Identity())
    assert (error.item(), signal.item()) == (4.0, 1.0)
