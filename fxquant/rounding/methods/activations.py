"""Activation functions behind a layer, and the gradient of the squared error behind them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Activation(ABC):
    """An element-wise function f with, for L = ½ Σ (f(y) - t)², the gradient ∂L/∂y."""

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """Return f(y)."""

    @abstractmethod
    def write_gradient(self, y: Tensor, targets: Tensor, out: Tensor) -> None:
        """Write (f(y) - targets) · f'(y) into `out`; all three have the same shape."""


@dataclass(frozen=True)
class Identity(Activation):
    """No activation function."""

    def __call__(self, y: Tensor) -> Tensor:
        """Return y itself."""
        return y

    def write_gradient(self, y: Tensor, targets: Tensor, out: Tensor) -> None:
        """Write y - targets."""
        torch.sub(y, targets, out=out)


@dataclass(frozen=True)
class Clamp(Activation):
    """ReLU, (0, ∞); ReLU6, (0, 6); and the like."""

    low: float = 0.0
    high: float = math.inf

    def __call__(self, y: Tensor) -> Tensor:
        """Return y within the bounds."""
        return y.clamp(self.low, self.high)

    def write_gradient(self, y: Tensor, targets: Tensor, out: Tensor) -> None:
        """Write clamp(y) - targets where y is inside of the bounds, else 0."""
        torch.clamp(y, self.low, self.high, out=out)
        out.sub_(targets)
        torch.ops.aten.hardtanh_backward(out, y, self.low, self.high, grad_input=out)


@dataclass(frozen=True)
class Differentiated(Activation):
    """Any other function of a tensor, by autograd."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, y: Tensor) -> Tensor:
        """Return f(y)."""
        return self.function(y)

    def write_gradient(self, y: Tensor, targets: Tensor, out: Tensor) -> None:
        """Write the gradient that autograd finds."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = y.clone().requires_grad_()
            value = self.function(leaf.clone())  # cloned: the function may work in place
            (gradient,) = torch.autograd.grad(value, leaf, value.detach() - targets)
        out.copy_(gradient)
