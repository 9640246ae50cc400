"""Some rows of a layer's result, computed in float32 of no more than they depend on.

A kernel that is wrong is wrong somewhere at the ends of an axis, in the middle, or everywhere: few
rows tell, and take float32 a fraction of the layer's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.int8.arrangements import Shapes
from fxquant.int8.operands import Geometry, Uint8, Weight

_EDGE = 3  # rows at either end and in the middle that are compared; of one axis 9


class Sample:
    """Some rows and outputs of a layer.

    Args:
        x: its input, all of it.
        weight: (out, in/groups, *kernel), of a linear layer (out, in).
        geometry: of a convolution; None for a linear layer, whose input is (rows, in).
    """

    def __init__(self, x: Uint8, weight: Weight, geometry: Geometry | None) -> None:
        outputs = len(weight.integers)
        is_grouped = geometry is not None and geometry.groups > 1
        # Of outputs in groups, whose products are few, all.
        self._channels = _some_of(outputs, outputs if is_grouped else 3 * _EDGE)
        bias = None if weight.bias is None else weight.bias[self._channels]
        scale = weight.scale if weight.scale.numel() == 1 else weight.scale[self._channels]
        weights = Weight(weight.integers[self._channels], scale, bias)
        part, own, self._rows = _some_rows(x, weight, geometry)
        self.operands = (part, weights, own)
        """What they are computed of: input, weight and geometry."""

    def of(self, y: Tensor) -> Tensor:
        """Return these rows and outputs of a whole result."""
        return self._rows(y)[:, self._channels]


def _some_rows(
    x: Uint8, weight: Weight, geometry: Geometry | None
) -> tuple[Uint8, Geometry | None, Callable[[Tensor], Tensor]]:
    """Return what some rows of the result are computed of, by which geometry, and what picks them.

    Of a convolution those at both ends of the first axis and in its middle, of the first and the
    last image.
    """
    count = len(x.values)
    if geometry is None:
        rows = _some_of(count, 3 * _EDGE)
        return x._replace(values=x.values[rows]), None, lambda y: y[rows]
    shapes = Shapes(tuple(x.values.shape), tuple(weight.integers.shape), geometry, False)
    stride, padding, window = (
        each[0] for each in (geometry.stride, geometry.padding, shapes.windows())
    )
    outputs = shapes.outputs()
    rows = _some_of(outputs[0], _EDGE if len(outputs) > 1 else 3 * _EDGE)
    images = torch.tensor([0, count - 1][:count])
    sides = [0, 0] * (len(outputs) - 1) + [padding, padding]
    padded = F.pad(x.values[images], sides, value=x.zero_point)
    read = rows[:, None] * stride + torch.arange(window)
    part = x._replace(values=padded.index_select(2, read.flatten()))
    own = geometry._replace(
        stride=(window, *geometry.stride[1:]), padding=(0, *geometry.padding[1:])
    )
    return part, own, lambda y: y[images].index_select(2, rows)


def _some_of(count: int, edge: int) -> Tensor:
    """Return the first numbers below `count`, some of the middle and the last ones."""
    middle = count // 2
    wanted = {*range(edge), *range(middle, middle + edge), *range(count - edge, count)}
    return torch.tensor(sorted(wanted & set(range(count))))


def random_integers(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a uint8 tensor of random integers, eight at a time: drawn singly they take longer."""
    count = math.prod(shape)
    words = torch.empty(count // 8 + 1, dtype=torch.int64).random_(generator=generator)
    return words.view(torch.uint8)[:count].reshape(tuple(shape))


def leave_litter(value: int) -> None:
    """Leave memory behind that is not 0, for a kernel may read what it never wrote.

    Without it 13 of 406 wrong kernels passed the check, with it 3.
    """
    sizes = [2**power for power in range(8, 21)] * 4
    litter = [torch.full((size,), value, dtype=torch.uint8) for size in sizes]
    del litter
