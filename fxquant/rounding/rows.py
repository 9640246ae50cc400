"""Output positions of a layer as rows of a matrix product.

A convolution at one output position is a product of its weight, as (out, in · taps), with the
inputs under its taps. Neighbouring positions repeat each other, so a few of them, drawn at random,
carry what the whole images do. A transposed convolution is the convolution of its input with zeros
between the values, taps in reverse; a linear layer has one tap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxquant.modules.layers import Layer, is_transposed, num_groups, output_rows


def grouped_weight(layer: Layer, weight: Tensor) -> Tensor:
    """Return `weight`, shaped as the layer's own, as (groups, out/groups, taps · in/groups)."""
    taps = math.prod(layer.weight.shape[2:])
    rows = output_rows(layer, weight)
    rows = rows.reshape(len(rows), -1, taps).transpose(1, 2)  # (out, taps, in/groups)
    if is_transposed(layer):
        rows = rows.flip(1)
    return rows.reshape(num_groups(layer), -1, rows[0].numel())


def ungrouped_weight(layer: Layer, grouped: Tensor) -> Tensor:
    """Return the inverse of `grouped_weight`."""
    taps = math.prod(layer.weight.shape[2:])
    groups, outputs, _ = grouped.shape
    rows = grouped.reshape(groups, outputs, taps, -1)
    if is_transposed(layer):  # (groups, in/groups, out/groups, taps)
        return rows.flip(2).permute(0, 3, 1, 2).reshape(layer.weight.shape)
    return rows.transpose(2, 3).reshape(layer.weight.shape)


def sample_rows(
    layer: Layer, inputs: Tensor, outputs: Tensor, per_sample: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return at most `per_sample` random output positions of each sample.

    Args:
        layer: any of `fxquant.modules.layers.LAYERS`.
        inputs: what it is called with, with or without a batch axis.
        outputs: a tensor shaped as its result.
        per_sample: all positions are taken where there are fewer.
        generator: on the CPU, so that every device draws the same.

    Returns:
        The inputs under the taps, (groups, rows, taps · in/groups), and the outputs, (groups, rows,
        out/groups); float32.
    """
    if isinstance(layer, nn.Linear):
        return _sample_linear(layer, inputs, outputs, per_sample, generator)
    axes = layer.weight.dim() - 2
    if inputs.dim() == axes + 1:
        inputs, outputs = inputs[None], outputs[None]
    lattice = _lattice_of(layer)
    sides = outputs.shape[2:]
    padded = lattice.pad(inputs, sides)
    positions = _draw(len(inputs), math.prod(sides), per_sample, generator).to(inputs.device)
    starts = _flat_positions(positions, sides, lattice.stride, padded.shape[2:])
    taps = _flat_taps(layer.kernel_size, lattice.dilation, padded.shape[2:], inputs.device)
    under = _take(padded, (starts[:, :, None] + taps).flatten(1))
    return _rows(under, len(taps), layer.groups), _rows(_take(outputs, positions), 1, layer.groups)


def _sample_linear(
    layer: nn.Linear, inputs: Tensor, outputs: Tensor, per_sample: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    samples = 1 if inputs.dim() == 1 else len(inputs)
    inputs = inputs.reshape(samples, -1, layer.in_features)
    outputs = outputs.reshape(samples, -1, layer.out_features)
    positions = _draw(samples, inputs.shape[1], per_sample, generator).to(inputs.device)[:, :, None]
    taken = (each.gather(1, positions.expand(-1, -1, each.shape[2])) for each in (inputs, outputs))
    under, targets = (each.reshape(1, -1, each.shape[2]).to(torch.float32) for each in taken)
    return under, targets


def _draw(samples: int, positions: int, per_sample: int, generator: torch.Generator) -> Tensor:
    """Return distinct random positions for each sample: (samples, at most per_sample)."""
    if positions <= per_sample:
        return torch.arange(positions).expand(samples, -1)
    if positions > 16 * per_sample:  # of so many, drawing one twice is rare and harmless
        return torch.randint(positions, (samples, per_sample), generator=generator)
    return torch.rand(samples, positions, generator=generator).topk(per_sample, dim=1).indices


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Return the channels of `images` (N, C, *sides) at flat positions: (N, M) -> (N, M, C).

    Where channels come last in memory, as in a `Stream`, nothing but what is taken is read.
    """
    last = images.movedim(1, -1).flatten(1, -2)  # (N, positions, C)
    return last.gather(1, index[:, :, None].expand(-1, -1, last.shape[2]))


def _rows(taken: Tensor, taps: int, groups: int) -> Tensor:
    """Return (samples, positions · taps, channels) as (groups, rows, taps · channels/groups)."""
    samples, places, channels = taken.shape
    grouped = taken.reshape(samples * places // taps, taps, groups, channels // groups)
    return grouped.permute(2, 0, 1, 3).reshape(groups, len(grouped), -1).to(torch.float32)


@dataclass(frozen=True)
class _Lattice:
    """The convolution that computes a layer: zeros between values, padding, stride, dilation."""

    gaps: tuple[int, ...]
    before: tuple[int, ...]
    """How much is padded before each axis; negative cuts off."""
    after: tuple[int, ...] | None
    """And behind it; None for as much as the output needs: a transposed convolution's output may
    be longer than `output_padding` says, where the caller asks for it."""
    mode: str
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]

    def pad(self, inputs: Tensor, output_sides: torch.Size) -> Tensor:
        """Return `inputs` (N, C, *sides) with the zeros between and the padding around."""
        if any(gap > 1 for gap in self.gaps):
            sides = [
                (side - 1) * gap + 1 for side, gap in zip(inputs.shape[2:], self.gaps, strict=True)
            ]
            spread = inputs.new_zeros(*inputs.shape[:2], *sides)
            steps = tuple(slice(None, None, gap) for gap in self.gaps)
            spread[(slice(None), slice(None), *steps)] = inputs
            inputs = spread
        padding: list[int] = []  # as F.pad takes it: last axis first
        for axis in reversed(range(len(self.before))):
            before = self.before[axis]
            reach = output_sides[axis] + self.dilation[axis] * (self.kernel_size[axis] - 1)
            after = self.after[axis] if self.after else reach - inputs.shape[2 + axis] - before
            padding += [before, after]
        return F.pad(inputs, padding, mode=self.mode) if any(padding) else inputs


def _lattice_of(layer: Layer) -> _Lattice:
    assert not isinstance(layer, nn.Linear)
    axes = range(len(layer.stride))
    ones = (1,) * len(layer.stride)
    if not is_transposed(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        twice = layer._reversed_padding_repeated_twice
        before, after = (tuple(twice[::-1][side::2]) for side in (1, 0))
        return _Lattice(ones, before, after, mode, layer.stride, layer.dilation, layer.kernel_size)
    before = tuple(
        layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        for axis in axes
    )
    return _Lattice(layer.stride, before, None, "constant", ones, layer.dilation, layer.kernel_size)


def _flat_positions(
    positions: Tensor, sides: torch.Size, stride: tuple[int, ...], padded: torch.Size
) -> Tensor:
    """Return where in a flattened padded image the first tap of each output position lies."""
    flat = torch.zeros_like(positions)
    rest, step = positions, 1
    for side, jump, width in zip(reversed(sides), reversed(stride), reversed(padded), strict=True):
        flat = flat + rest % side * (jump * step)
        rest, step = rest // side, step * width
    return flat


def _flat_taps(
    kernel: tuple[int, ...], dilation: tuple[int, ...], padded: torch.Size, device: torch.device
) -> Tensor:
    """Return where the taps lie behind the first one in a flattened padded image: (taps,)."""
    flat, step = torch.zeros(1, dtype=torch.int64, device=device), 1
    for taps, gap, width in zip(
        reversed(kernel), reversed(dilation), reversed(padded), strict=True
    ):
        along = torch.arange(taps, device=device) * (gap * step)
        flat = (along[:, None] + flat).flatten()
        step *= width
    return flat
