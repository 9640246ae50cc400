"""Round an activation to its grid: x̂ = s (clamp(round(x/s) + z, quant_min, quant_max) - z)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxquant.modules.figures import Figures
from fxquant.modules.own import FixedDtypeModule
from fxquant.modules.packed_weights import differs
from fxquant.numerics.affine import Affine, Grid, along_axis
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as


@stored_as("FakeQuantize")
class FakeQuantize(FixedDtypeModule):
    """Round a tensor to the grid of Eqs. (1)-(5) and return it in floating point, same dtype.

    Args:
        affine: what its integers stand for: one set, (), or one for each channel, (channels,).
        spec: what the range was chosen by.
        sqnr: signal over quantization noise on the calibration data, in dB; NaN if not known.
        axis: of the channels, from the end, where each has its own scale.
        channel_max: int32 (channels,), the greatest integer of each channel, where each has its own
            bits (`fxquant.numerics.channel_bits`); `grid` is then that of the widest.
    """

    stage = "converted"
    rounds = True

    grid: Grid
    spec: TensorSpec
    sqnr: float
    axis: int | None
    scale: Tensor
    zero_point: Tensor
    channel_max: Tensor | None

    def __init__(
        self,
        affine: Affine,
        spec: TensorSpec,
        sqnr: float,
        axis: int | None = None,
        channel_max: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.grid = affine.grid
        self.spec = spec
        self.sqnr = sqnr
        self.axis = axis
        self.register_buffer("scale", affine.scale)
        self.register_buffer("zero_point", affine.zero_point)
        self.register_buffer("channel_max", channel_max)

    @property
    def affine(self) -> Affine:
        """What the integers stand for; where channels have bits of their own, on the widest's."""
        return Affine(self.scale, self.zero_point, self.grid)

    @property
    def last(self) -> Tensor | int:
        """The greatest integer, of each channel where they differ."""
        return self.grid.quant_max if self.channel_max is None else self.channel_max

    def forward(self, x: Any) -> Any:
        """Return `x` rounded; anything but a floating-point tensor as it is."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if x.dtype not in (torch.float32, torch.float64):
            return self.forward(x.to(torch.float32)).to(x.dtype)
        if self.axis is not None:
            return self._round_channels(x, x.dim() + self.axis)
        is_traced = torch.compiler.is_compiling() or torch._C._is_tracing()
        if is_traced or x.is_meta or self.scale.is_meta:
            return self._round_as_graph(x)
        needs_gradient = x.requires_grad and torch.is_grad_enabled()
        if needs_gradient:  # PyTorch 2.7's kernel casts what is far outside to a wrong integer
            steps = self.scale * (self.grid.steps + 1)
            x = x.clamp(-steps, steps)
        if needs_gradient or x.device.type != "cpu":
            y = torch.fake_quantize_per_tensor_affine(
                x, self.scale, self.zero_point, self.grid.quant_min, self.grid.quant_max
            )
            return torch.where(x.isnan(), x, y)
        # On the CPU PyTorch's kernel is not vectorized and writes a mask for the gradient: 35 ms
        # for 8×256×56×56 values on two cores, against 4 ms for the lines below
        # (benchmarks/int8/overhead.py).
        scale, zero_point = self.scale.item(), int(self.zero_point.item())
        y = x * (1 / scale)
        y.round_().clamp_(self.grid.quant_min - zero_point, self.grid.quant_max - zero_point)
        return y.mul_(scale)

    def _round_as_graph(self, x: Tensor) -> Tensor:
        """Return the same values by operations that `torch.export` takes with any batch."""
        scale, inverse = (each.to(x.dtype) for each in (self.scale, 1 / self.scale.double()))
        first, last = self.grid.quant_min - self.zero_point, self.grid.quant_max - self.zero_point
        y = (x * inverse).round().clamp(first, last) * scale
        return _passing_gradient(x, y, first * scale, last * scale, scale)

    def _round_channels(self, x: Tensor, axis: int) -> Tensor:
        scale = along_axis(self.scale, axis, x.dim())
        first = along_axis(self.grid.quant_min - self.zero_point, axis, x.dim())
        last = along_axis(self.last - self.zero_point, axis, x.dim())
        y = (x / scale).round_().clamp_(first, last).mul_(scale)
        return _passing_gradient(x, y, first * scale, last * scale, scale)

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of such a module."""
        if self.axis is None:
            self.affine.check(())
        else:
            self.affine.check((self.scale.numel(),))
        if self.channel_max is not None and self.channel_max.shape != self.scale.shape:
            raise ValueError(f"channel_max of shape {tuple(self.channel_max.shape)}")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["grid"] = (self.grid.quant_min, self.grid.quant_max)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ends = (self.grid.quant_min, self.grid.quant_max)
        given = tuple(local_metadata.get("grid", ends))
        if given != ends:
            error_msgs.append(
                f"{prefix}scale is of integers from {given[0]} to {given[1]}, the model's go from "
                f"{ends[0]} to {ends[1]}: is the other model's recipe the same?"
            )
        if differs(self.scale, state_dict.get(f"{prefix}scale")):
            self.sqnr = math.nan  # it was that of another scale
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def parameters_text(self) -> str:
        """Return the parameters in a few words."""
        if self.axis is not None:
            text = f"scale={self.scale.mean().item():.4g} over {len(self.scale)} channels"
            if self.channel_max is not None:
                bits = (self.channel_max + 1).log2()
                text += f" of {int(bits.min())} to {int(bits.max())} bits"
            return text
        return f"scale={self.scale.item():.4g} zero_point={self.zero_point.item()}"

    @property
    def fixed_spec(self) -> TensorSpec:
        """What the range was chosen by."""
        return self.spec

    def output_figures(self) -> list[Figures]:
        """Return the spec, the mean scale and what calibration measured."""
        return [Figures(str(self.spec), self.scale.mean().item(), self.sqnr)]

    def why_no_integers(self) -> str | None:
        """Return what is wrong with more than 8 bits."""
        return "activations of 16 bits: choose 2 to 8" if self.spec.bits > 8 else None

    def facts(self) -> str:
        """Return the spec and the parameters."""
        return f"{self.spec} {self.parameters_text()}"

    def extra_repr(self) -> str:
        """Return the spec and the parameters."""
        return f"{self.spec}, {self.parameters_text().replace(' zero', ', zero')}"


def _passing_gradient(x: Tensor, y: Tensor, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
    """Return `y`, x rounded to values from `low` to `high`, with the gradient of x within these.

    The straight-through estimator: y - x is exact, as is its sum with x.
    """
    if not (x.requires_grad and torch.is_grad_enabled()) or torch._C._is_tracing():
        return y
    inside = torch.minimum(torch.maximum(x, low - step / 2), high + step / 2)
    return inside + (y - inside).detach()
