"""Modules of the converted model: integers inside, floating point at the border.

`FakeQuantize` rounds an activation to its grid; a `QuantizedLayer` keeps its weight as integers and
hands the float kernels what those integers stand for. Integer weights, scales and zero-points are
buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.modules.figures import Figures
from fxquant.modules.layers import (
    Layer,
    is_transposed,
    layer_type,
    num_outputs,
    output_rows,
    per_output,
)
from fxquant.modules.own import FixedDtypeModule
from fxquant.modules.packed_weights import PackedWeights
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.decibels import sqnr
from fxquant.numerics.weight_ranges import weight_range
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as


class QuantizedLayer(PackedWeights, FixedDtypeModule):
    """A layer of `torch.nn` whose weight is kept as int8 integers on a grid of 2 to 8 bits.

    `weight_scale` and `weight_zero_point` are (out,) per channel or () per tensor. `weight` is what
    the integers stand for, in the layer's dtype, made anew at each call. Below 8 bits, state dicts
    and pickles hold the integers packed.
    """

    stage = "converted"
    follows_dtype = ("dtype_probe",)

    weight_integers: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    dtype_probe: Tensor
    weight_spec: TensorSpec
    weight_sqnr: float
    weight_gain: Tensor | None
    weight_shift: Tensor | None

    @property
    def weight_affine(self) -> Affine:
        """What the integers stand for, before `weight_gain` and `weight_shift`."""
        grid = Grid.of(self.weight_spec.bits, signed=True)
        return Affine(self.weight_scale, self.weight_zero_point, grid)

    @property
    def weight(self) -> Tensor:
        """The weight that the integers stand for, shaped and typed as the float layer's.

        Where `weight_gain` and `weight_shift` are set (`fxquant.passes.CorrectWeights`), times the
        one plus the other.
        """
        layer: Any = self
        scale = per_output(layer, self.weight_scale, self.weight_integers)
        weight = self.weight_integers.to(torch.float32)
        if not self.weight_spec.symmetric:
            weight.sub_(per_output(layer, self.weight_zero_point, self.weight_integers))
        weight.mul_(scale)
        if self.weight_gain is not None and self.weight_shift is not None:
            weight.mul_(per_output(layer, self.weight_gain, weight))
            weight.add_(per_output(layer, self.weight_shift, weight))
        return weight.to(self.dtype_probe.dtype)

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of such a layer."""
        layer: Any = self
        integers, shape = self.weight_integers, _weight_shape(layer)
        if (integers.dtype, tuple(integers.shape)) != (torch.int8, shape):
            raise ValueError(f"a weight of {tuple(integers.shape)}, where {shape} is right")
        error = self._why_not_on_grid(integers, "weight_integers")
        if error is not None:
            raise ValueError(error)
        outputs = (num_outputs(layer),)
        self.weight_affine.check((), outputs)
        for name in ("bias", "weight_gain", "weight_shift"):
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != outputs:
                raise ValueError(f"{name} of {tuple(values.shape)}, where {outputs} is right")

    def bias_values(self) -> Tensor:
        """Return the bias in float32, (out,): zeros where there is none."""
        layer: Any = self
        if layer.bias is None:
            return self.weight_scale.new_zeros(num_outputs(layer))
        bias: Tensor = layer.bias.detach().to(torch.float32)
        return bias

    def set_bias(self, bias: Tensor) -> None:
        """Compute with `bias`, (out,), from now on, as a new parameter in the layer's dtype."""
        parameter = nn.Parameter(bias.to(self.dtype_probe.dtype), requires_grad=False)
        self.register_parameter("bias", parameter)

    @property
    def fixed_spec(self) -> TensorSpec:
        """The weight's spec."""
        return self.weight_spec

    def weight_figures(self) -> Figures:
        """Return what a report shows of the weight."""
        scale = self.weight_scale.mean().item()
        return Figures(str(self.weight_spec), scale, self.weight_sqnr)

    def why_no_integers(self) -> str | None:
        """Return why the weight is none of integers, if its moments were corrected."""
        if self.weight_gain is None:
            return None
        return (
            "corrected moments leave the integers' grid (bias_correction='weights'): choose "
            "bias_correction=True, which corrects the bias"
        )

    def facts(self) -> str:
        """Return the weight's spec, and what changed its integers or what they stand for."""
        learned = self.rounding is not None and self.rounding.kept
        notes = f" {self.rounding.method}" if self.rounding is not None and learned else ""
        notes += " moments corrected" * (self.weight_gain is not None)
        return f"{self.weight_spec}{notes}"

    def extra_repr(self) -> str:
        """Return the float layer's arguments and the weight's spec."""
        layout = "per channel" if self.weight_spec.per_channel else "per tensor"
        return f"{super().extra_repr()}, weight: {self.weight_spec} {layout}"


@stored_as("QuantizedConv1d")
class QuantizedConv1d(QuantizedLayer, nn.Conv1d):  # type: ignore[override]
    """`nn.Conv1d` with an integer weight."""


@stored_as("QuantizedConv2d")
class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[override]
    """`nn.Conv2d` with an integer weight."""


@stored_as("QuantizedConv3d")
class QuantizedConv3d(QuantizedLayer, nn.Conv3d):  # type: ignore[override]
    """`nn.Conv3d` with an integer weight."""


@stored_as("QuantizedConvTranspose1d")
class QuantizedConvTranspose1d(QuantizedLayer, nn.ConvTranspose1d):  # type: ignore[override]
    """`nn.ConvTranspose1d` with an integer weight."""


@stored_as("QuantizedConvTranspose2d")
class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):  # type: ignore[override]
    """`nn.ConvTranspose2d` with an integer weight."""


@stored_as("QuantizedConvTranspose3d")
class QuantizedConvTranspose3d(QuantizedLayer, nn.ConvTranspose3d):  # type: ignore[override]
    """`nn.ConvTranspose3d` with an integer weight."""


@stored_as("QuantizedLinear")
class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[override]
    """`nn.Linear` with an integer weight."""


def _weight_shape(layer: Any) -> tuple[int, ...]:
    """Return the shape of a layer's weight by its other fields."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    ends = layer.out_channels, layer.in_channels
    first, second = reversed(ends) if is_transposed(layer) else ends
    return (first, second // layer.groups, *layer.kernel_size)


_QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
    nn.Linear: QuantizedLinear,
}


def quantize_layer(layer: Layer, spec: TensorSpec) -> QuantizedLayer:
    """Return `layer` with its weight rounded to nearest; `layer` itself is left as it is.

    The bias stays in floating point, and is the same `Parameter` object.
    """
    weight = layer.weight.detach()
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rows = output_rows(layer, exact) if spec.per_channel else exact.reshape(1, -1)
    low, high = weight_range(rows, spec)
    grid = Grid.of(spec.bits, signed=True)
    affine = Affine.over(low, high, grid, symmetric=spec.symmetric)
    if not spec.per_channel:
        affine = affine.map(lambda values: values[0])
    wide = affine.map(lambda values: per_output(layer, values, weight))
    integers = wide.quantize(exact)

    kind = layer_type(layer)
    assert kind is not None
    # Not through __init__, which would draw a weight: stride, padding and the like are attributes.
    quantized: Any = _QUANTIZED[kind].__new__(_QUANTIZED[kind])
    nn.Module.__init__(quantized)
    options = {name: value for name, value in vars(layer).items() if name not in vars(quantized)}
    vars(quantized).update(options, training=layer.training)
    quantized.register_parameter("bias", layer.bias)
    quantized.weight_spec = spec
    quantized.weight_sqnr = sqnr(exact, wide.dequantize(integers))
    quantized.register_buffer("weight_integers", integers.to(torch.int8))
    quantized.register_buffer("weight_scale", affine.scale)
    quantized.register_buffer("weight_zero_point", affine.zero_point)
    quantized.register_buffer("weight_gain", None)
    quantized.register_buffer("weight_shift", None)
    probe = torch.empty(0, dtype=weight.dtype, device=weight.device)
    quantized.register_buffer("dtype_probe", probe, persistent=False)
    return quantized  # type: ignore[no-any-return]
