"""Modules of a lowered model: uint8 in, uint8 out, computed by the wing's kernels.

A layer whose result nothing quantizes returns float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxquant.int8 import checked, kernels, operators
from fxquant.int8.operands import Clamp, Geometry, Result, Uint8, Weight
from fxquant.modules.figures import Figures
from fxquant.modules.layers import is_transposed
from fxquant.modules.own import OwnModule
from fxquant.modules.packed_weights import PackedWeights
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Affine, AffineNumbers, Grid
from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as

_IN_FLOAT = Result.of(None)


class Int8Module(OwnModule):
    """A module with fixed quantization parameters, which its graph has in its state."""

    stage = "lowered"

    input: AffineNumbers
    other: AffineNumbers | None
    output: AffineNumbers | None
    clamp: Clamp
    result: Result
    """What the kernels make of `output` and `clamp`."""
    times_renumbered: ClassVar[int] = 0
    """How often any such module took other numbers: programs look at it at each call."""

    def __init__(
        self,
        input: AffineNumbers,
        other: AffineNumbers | None,
        output: AffineNumbers | None,
        clamp: Clamp,
    ) -> None:
        super().__init__()
        self.input, self.other, self.output, self.clamp = input, other, output, clamp
        self.result = Result.of(output, clamp)

    def check_stored(self) -> None:
        """Raise `ValueError` if the fields of a file contradict each other."""
        maps = [each for each in (self.input, self.other, self.output) if each is not None]
        if any(each.grid.quant_min != 0 or each.grid.quant_max > 255 for each in maps):
            raise ValueError(f"integers that are no uint8: {[each.grid for each in maps]}")
        if self.result != Result.of(self.output, self.clamp):
            raise ValueError(f"{self.result}, where {Result.of(self.output, self.clamp)} is right")

    def input_figures(self) -> list[Figures]:
        """Return what a report shows of both operands."""
        maps = [each for each in (self.input, self.other) if each is not None]
        return [Figures(f"0 to {each.grid.quant_max}", each.scale) for each in maps]

    def numbers(self) -> dict[str, float | int]:
        """Return scales and zero-points: `input_scale` and so on, of the result `scale`."""
        return {
            f"{start}{name}": getattr(integers, name)
            for start, integers in (
                ("input_", self.input),
                ("other_", self.other),
                ("", self.output),
            )
            for name in ("scale", "zero_point")
            if integers is not None
        }

    def take_numbers(self, numbers: dict[str, Any]) -> None:
        """Compute with these from now on."""

        def taken(integers: AffineNumbers, start: str) -> AffineNumbers:
            new = {name: numbers[start + name] for name in ("scale", "zero_point")}
            return replace(integers, **new)

        self.input = taken(self.input, "input_")
        self.other = self.other and taken(self.other, "other_")
        self.output = self.output and taken(self.output, "")
        self.result = Result.of(self.output, self.clamp)
        Int8Module.times_renumbered += 1

    def form(self) -> str:
        """Return which results are integers, of which bits, and the ReLU behind."""
        grids = [each and each.grid for each in (self.input, self.other, self.output)]
        return f"{super().form()} {grids} {self.clamp}"

    def extra_repr(self) -> str:
        """Return what the result's integers stand for."""
        if self.output is None:
            return "→ float32"
        return f"→ uint8 scale={self.output.scale:.4g} zero_point={self.output.zero_point}"


class Int8Layer(PackedWeights, Int8Module):
    """A convolution or a linear layer, and the activation function behind it.

    Args:
        layer: whose integers it works with; for `weight` see `why_not_int8`.
        input: of its uint8 input.
        output: of its uint8 result; None for float32.
        activation: what `fxquant.int8.kernels` has: "none", "swish", …
        clamp: bounds of the ReLU behind.
        other: of the operand that is added to the result, before the ReLU.
        keep_other: see that the operand is not overwritten.
    """

    weight_integers: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    weight_spec: TensorSpec
    weight_sqnr: float
    verify: bool = True
    """Whether the kernel is checked at the first call of a size."""
    activation: str
    keep_other: bool
    quickest: Mapping[str, str] = MappingProxyType({})
    """Which way to compute it was soonest done, by what it was called with, and where."""

    def __init__(
        self,
        layer: QuantizedLayer,
        input: AffineNumbers,
        output: AffineNumbers | None,
        activation: str = "none",
        clamp: Clamp = None,
        other: AffineNumbers | None = None,
        keep_other: bool = True,
    ) -> None:
        super().__init__(input, other, output, clamp)
        self.activation, self.keep_other = activation, keep_other
        self.weight_spec, self.weight_sqnr = layer.weight_spec, layer.weight_sqnr
        self.rounding = layer.rounding
        bias: Any = layer.bias
        self.register_buffer("weight_integers", layer.weight_integers)
        self.register_buffer("weight_scale", layer.weight_scale.reshape(-1))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))

    def check_stored(self) -> None:
        """Raise `ValueError` if the tensors of a file are not those of such a layer."""
        super().check_stored()
        integers, scale, bias = self._weight()
        if integers.dtype != torch.int8 or 0 in integers.shape or integers.dim() < 2:
            raise ValueError(f"a weight of {integers.dtype}, {tuple(integers.shape)}")
        error = self._why_not_on_grid(integers, "weight_integers")
        if error is not None:
            raise ValueError(error)
        outputs = (len(integers),)
        self._affine(scale).check((1,), outputs)
        if bias is not None and (bias.dtype, tuple(bias.shape)) != (torch.float32, outputs):
            raise ValueError(f"a bias of {bias.dtype}, {tuple(bias.shape)}, not {outputs}")

    def _affine(self, scale: Tensor) -> Affine:
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return Affine(scale, zero_point, Grid.of(self.weight_spec.bits, signed=True))

    @property
    def weight(self) -> Tensor:
        """What the weight's integers stand for: code around a region may ask for it."""
        scale = self.weight_scale.reshape(-1, *[1] * (self.weight_integers.dim() - 1))
        return self.weight_integers * scale

    def weight_figures(self) -> Figures:
        """Return what a report shows of the weight."""
        scale = self.weight_scale.mean().item()
        return Figures(str(self.weight_spec), scale, self.weight_sqnr)

    def form(self) -> str:
        """Return the weight's bits and the activation function as well."""
        return f"{super().form()} {self.weight_spec.bits} {self.activation} {self.keep_other}"

    def _weight(self) -> Weight:
        """Return what the kernels take for the weight: its tensors may have been replaced."""
        buffers: Any = self._buffers  # not as attributes, each of which takes PyTorch 0.6 µs
        return Weight(buffers["weight_integers"], buffers["weight_scale"], buffers["bias"])

    def extra_repr(self) -> str:
        """Return what is computed."""
        parts = [str(self.weight_spec), *([self.activation] if self.activation != "none" else [])]
        if self.clamp is not None:
            parts.append("relu" if math.isinf(self.clamp[1]) else f"relu{self.clamp[1]:g}")
        return f"{' + '.join([*parts, *(['add'] if self.other else [])])} {super().extra_repr()}"


@stored_as("Int8Linear")
class Int8Linear(Int8Layer):
    """A linear layer on integers; input (…, in)."""

    @property
    def in_features(self) -> int:
        """The length of the input's last axis, as `nn.Linear` has it."""
        return self.weight_integers.shape[1]

    @property
    def out_features(self) -> int:
        """The length of the result's last axis, as `nn.Linear` has it."""
        return self.weight_integers.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result, uint8 or float32."""
        integers = Uint8.of(x, self.input)
        return operators.call(
            checked.linear, integers, self._weight(), self.activation, self.result, self.verify
        )


@stored_as("Int8Conv")
class Int8Conv(Int8Layer):
    """A convolution over 1 to 3 dimensions on integers; input (N, in, *positions)."""

    transposed = False  # these as `nn.Conv2d` has them: code around a region may ask for them
    padding_mode = "zeros"
    geometry: Geometry
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(self, layer: QuantizedLayer, *rest: Any, **options: Any) -> None:
        super().__init__(layer, *rest, **options)
        conv: Any = layer
        padding = tuple(even_padding(layer) or ())
        self.geometry = Geometry(tuple(conv.stride), padding, tuple(conv.dilation), conv.groups)
        self.stride, self.padding, self.dilation, self.groups = self.geometry

    def check_stored(self) -> None:
        """Raise `ValueError` if the geometry of a file is none for its weight."""
        super().check_stored()
        sizes, num_axes = self.geometry[:3], self.weight_integers.dim() - 2
        own = Geometry(self.stride, self.padding, self.dilation, self.groups)
        is_one = all(len(each) == num_axes for each in sizes) and num_axes in (1, 2, 3)
        if not is_one or own != self.geometry or min(self.padding) < 0:
            raise ValueError(f"{self.geometry} for {num_axes} axes")
        if self.out_channels % self.groups:
            raise ValueError(f"{self.out_channels} outputs in {self.groups} groups")

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight_integers.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.weight_integers.shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The sides of the kernel."""
        return tuple(self.weight_integers.shape[2:])

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Nothing: it is no transposed convolution."""
        return (0,) * len(self.stride)

    def form(self) -> str:
        """Return the geometry as well."""
        return f"{super().form()} {tuple(self.geometry)}"

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the convolution, plus `other`; uint8 or float32."""
        if x.dim() < len(self.stride) + 2:  # no batch
            return self.forward(x[None], None if other is None else other[None])[0]
        product = (Uint8.of(x, self.input), self._weight(), self.geometry)
        if other is None:
            return operators.call(checked.conv, *product, self.activation, self.result, self.verify)
        assert self.other is not None
        assert self.output is not None
        if other.shape != self._shape(x):
            y = operators.call(checked.conv, *product, "none", _IN_FLOAT, self.verify)
            y = y + kernels.dequantize(other, self.other.scale, self.other.zero_point)
            return kernels.narrow(y, 1 / self.output.scale, *self.result[1:])
        accumulator = other.clone() if self.keep_other else other
        operand = Uint8.of(accumulator, self.other)
        return operators.call(checked.conv_add, *product, operand, self.result, self.verify)

    def why_in_float(self, shape: tuple[int, ...] | None) -> str | None:
        """Return why an input of that shape is computed in float32; None if not, or not known."""
        if shape is None or not self.verify:
            return None
        layer = (self._weight(), self.geometry, self.activation, self.result)
        adds = self.other is not None
        return checked.why_in_float(shape, self.input.zero_point, *layer, adds)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the result."""
        kernel = self.weight_integers.shape[2:]
        geometry = zip(x.shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True)
        sizes = [
            (size + 2 * padding - dilation * (width - 1) - 1) // stride + 1
            for size, width, stride, padding, dilation in geometry
        ]
        return (x.shape[0], self.weight_integers.shape[0], *sizes)


@stored_as("Int8Add")
class Int8Add(Int8Module):
    """The sum of two uint8 tensors as uint8, held within the bounds of the ReLU behind it."""

    def __init__(
        self, input: AffineNumbers, other: AffineNumbers, output: AffineNumbers, clamp: Clamp = None
    ) -> None:
        super().__init__(input, other, output, clamp)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b; shapes broadcast."""
        assert self.other is not None
        operands = (Uint8.of(a, self.input), Uint8.of(b, self.other))
        return operators.call(kernels.add, *operands, self.result)


def why_not_int8(layer: QuantizedLayer) -> str | None:
    """Return why the kernels cannot compute `layer`, or None if they can."""
    known: Any = layer
    if is_transposed(known):
        return "there is no int8 kernel for transposed convolutions"
    if not layer.weight_spec.symmetric:
        return "its weight has zero-points (symmetric=False), and the kernels take none"
    if getattr(known, "padding_mode", "zeros") != "zeros":
        return f"there is no int8 kernel for padding_mode={known.padding_mode!r}"
    if hasattr(known, "padding") and even_padding(layer) is None:
        return "its padding 'same' differs on the two sides"
    if known.dtype_probe.dtype is not torch.float32:
        return f"its results are {known.dtype_probe.dtype}, those of the kernels float32"
    return None


def even_padding(layer: QuantizedLayer) -> Sequence[int] | None:
    """Return the zeros on either side, one a dimension; None where the sides differ."""
    conv: Any = layer
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    sizes = zip(conv.dilation, conv.kernel_size, strict=True)
    total = [dilation * (width - 1) for dilation, width in sizes]
    return None if any(each % 2 for each in total) else [each // 2 for each in total]
