"""The hand-written gradient of ½ Σ (f(y) - t)² is the one that autograd finds."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxquant.rounding.methods.activations import Activation, Clamp, Differentiated, Identity

Function = Callable[[Tensor], Tensor]

CASES: dict[str, tuple[Activation, Function]] = {
    "identity": (Identity(), lambda y: y),
    "relu": (Clamp(), F.relu),
    "relu6": (Clamp(0.0, 6.0), F.relu6),
    "hardtanh": (Clamp(0.0, 0.5), partial(F.hardtanh, min_val=0.0, max_val=0.5)),
    "silu": (Differentiated(F.silu), F.silu),
    "gelu": (Differentiated(nn.GELU("tanh")), partial(F.gelu, approximate="tanh")),
    "silu in place": (Differentiated(partial(F.silu, inplace=True)), F.silu),
    "module in place": (Differentiated(nn.Hardswish(inplace=True)), F.hardswish),
    "method in place": (Differentiated(Tensor.sigmoid_), torch.sigmoid),
}
EACH = pytest.mark.parametrize(("activation", "function"), CASES.values(), ids=CASES)


def values() -> tuple[Tensor, Tensor]:
    """Return (y, targets), y on both sides of all bounds and on them."""
    y = torch.randn(3, 40, 5) * 5
    y[0, :3, 0] = torch.tensor([0.0, 0.5, 6.0])
    return y, torch.randn(3, 40, 5)


def written(activation: Activation, y: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient, and check that nothing else was written."""
    out = torch.full_like(y, torch.nan)
    copies = y.clone(), targets.clone()
    activation.write_gradient(y, targets, out)
    assert torch.equal(y, copies[0])
    assert torch.equal(targets, copies[1])
    return out


@EACH
def test_computes_the_function(activation: Activation, function: Function) -> None:
    y, _ = values()
    assert torch.equal(activation(y.clone()), function(y))


@EACH
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_gradient_is_that_of_autograd(
    activation: Activation, function: Function, mode: type[torch.no_grad]
) -> None:
    y, targets = values()
    leaf = y.clone().requires_grad_()
    loss = (function(leaf) - targets).square().sum() / 2
    (expected,) = torch.autograd.grad(loss, leaf)
    with mode():
        out = written(activation, y, targets)
    torch.testing.assert_close(out, expected)
    assert not out.requires_grad


@EACH
def test_the_gradient_is_the_difference_of_two_losses(
    activation: Activation, function: Function
) -> None:
    y, targets = (each.double() for each in values())
    y += 1e-3  # off the bounds, where there is no derivative
    step = 1e-6
    above, below = ((function(y + side) - targets).square() / 2 for side in (step, -step))
    expected = (above - below) / (2 * step)
    torch.testing.assert_close(written(activation, y, targets), expected, atol=1e-6, rtol=1e-6)


@EACH
def test_works_in_inference_mode(activation: Activation, function: Function) -> None:
    y, targets = values()
    expected = written(activation, y, targets)
    with torch.inference_mode():
        assert torch.equal(written(activation, y, targets), expected)


def test_a_gradient_behind_a_bound_is_zero() -> None:
    y, targets = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0]), torch.full((5,), 5.0)
    assert written(Clamp(), y, targets).tolist() == [0, 0, -3, 1, 2]
    assert written(Clamp(0.0, 6.0), y, targets).tolist() == [0, 0, -3, 0, 0]
    assert written(Identity(), y, targets).tolist() == [-6, -5, -3, 1, 2]
