"""Batch norm in eval mode as what it is: y = scale·x + shift, channel by channel; and its folding.

    scale = γ/√(σ² + ε),  shift = β - μ·scale          (report, I.C; ε is the module's own)

Folding is computed in float32 or better and rounded once to the layer's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxquant.modules.layers import (
    Layer,
    is_transposed,
    num_outputs,
    output_rows,
    per_input,
    per_output,
)
from fxquant.modules.torchvision_names import FROZEN_BATCHNORM, defined_as
from fxquant.stored_names import stored_as

if TYPE_CHECKING:
    from torchvision.ops import FrozenBatchNorm2d

BatchNorm: TypeAlias = "_BatchNorm | FrozenBatchNorm2d"


@stored_as("FunctionalBatchNorm")
class FunctionalBatchNorm(_BatchNorm):
    """A call of `F.batch_norm` as a module: like `nn.BatchNorm2d`, for input of any rank."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any rank, as the function does."""


def is_batchnorm_module(module: nn.Module | None) -> bool:
    """Say whether `module` computes what one of PyTorch's or torchvision's batch norms computes.

    A subclass counts if it left `forward` as it was.
    """
    if module is None or "forward" in vars(module):
        return False
    forward = getattr(type(module), "forward", None)  # a ScriptModule's class has none
    if forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return True
    return defined_as(forward) == f"{FROZEN_BATCHNORM}.forward"


def why_not_affine(batchnorm: BatchNorm) -> str | None:
    """Return why `batchnorm` is not a fixed scale and shift, or None if it is."""
    if not isinstance(batchnorm, _BatchNorm):  # torchvision's, frozen by its nature
        return None
    if batchnorm.running_mean is None or batchnorm.running_var is None:
        return "it has no running statistics: it normalizes by each batch's own"
    if batchnorm.training:
        return "it is in training mode: it normalizes by each batch's own statistics"
    return None


def scale_and_shift(batchnorm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift of an eval-mode batch norm: (channels,) each."""
    mean, variance = batchnorm.running_mean, batchnorm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    dtype = torch.promote_types(mean.dtype, torch.float32)
    scale = torch.rsqrt(variance.to(dtype) + batchnorm.eps)
    if batchnorm.weight is not None:
        scale = scale * batchnorm.weight.detach().to(dtype)
    shift = -mean.to(dtype) * scale
    if batchnorm.bias is not None:
        shift = shift + batchnorm.bias.detach().to(dtype)
    return scale, shift


def output_moments(batchnorm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return mean β and standard deviation |γ|·σ/√(σ² + ε) of a batch norm's output: (channels,).

    For inputs that have the statistics which it keeps.
    """
    scale, shift = scale_and_shift(batchnorm)
    mean, variance = batchnorm.running_mean, batchnorm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return shift + mean.to(scale.dtype) * scale, scale.abs() * variance.to(scale.dtype).sqrt()


def fold_after(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Make `layer` compute scale·layer(x) + shift, with new parameters: W' = W·scale, b' = ….

    Args:
        layer: changed in place; parameters that it shares with other modules are not.
        scale: (out,).
        shift: (out,).
    """
    weight = layer.weight.detach().to(scale.dtype)
    bias = _bias(layer, scale)
    _set(layer, weight * per_output(layer, scale, weight), bias * scale + shift)


def fold_before(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Make `layer` compute layer(scale·x + shift), with new parameters.

    W' = W·scale along the input's channels, b' = b + Σ W·shift. Exact only where the layer pads
    nothing, or the shift is zero: padding enters behind the batch norm.

    Args:
        layer: changed in place; parameters that it shares with other modules are not.
        scale: (in,).
        shift: (in,).
    """
    weight = layer.weight.detach().to(scale.dtype)
    bias = _bias(layer, scale)
    if torch.any(shift != 0):
        bias = bias + output_rows(layer, weight * per_input(layer, shift, weight)).sum(dim=1)
    _set(layer, weight * per_input(layer, scale, weight), bias)


def why_shift_inexact(layer: Layer) -> str | None:
    """Return why a shift that is not zero cannot go into `layer` (`fold_before`), or None."""
    if isinstance(layer, nn.Linear):
        return None
    if is_transposed(layer):
        return "a transposed convolution leaves out taps at the border, and the shift is not zero"
    if layer.padding_mode != "zeros":
        return None
    if layer.padding == "same":
        pads = max(layer.kernel_size) > 1
    else:
        pads = not isinstance(layer.padding, str) and any(size > 0 for size in layer.padding)
    return "it pads with zeros, and the shift is not zero" if pads else None


def _bias(layer: Layer, like: Tensor) -> Tensor:
    if layer.bias is None:
        return like.new_zeros(num_outputs(layer))
    return layer.bias.detach().to(like.dtype)


def _set(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    old = layer.weight
    layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.to(old.dtype, copy=True), requires_grad=old.requires_grad)
