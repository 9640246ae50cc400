"""The share of a layer's outputs that a rank learns: what is learned of an output needs no other.

Each rank learns its own on the rows of all ranks, which are exchanged once; in the steps nothing
is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.rounding.grouped_layer import Rounding
from fxquant.streaming.distributed import num_ranks, rank, sum_over_ranks

_EACH = slice(None)


@dataclass(frozen=True)
class Share:
    """Some groups of a layer, or some outputs of each group.

    Args:
        groups: of weights (groups, out, in).
        outputs: of each group.
    """

    groups: slice
    outputs: slice

    @classmethod
    def of_this_rank(cls, rounding: Rounding, *, by_groups: bool = True) -> Share:
        """Return what this rank learns: all, where outputs share a scale or there are too few.

        Args:
            rounding: the layer.
            by_groups: where groups have too few outputs, share out groups.
        """
        groups, outputs, _ = rounding.weight.shape
        if num_ranks() == 1 or not rounding.per_channel:
            return ALL
        if outputs >= num_ranks():
            return cls(_EACH, _own(outputs))
        return cls(_own(groups), _EACH) if by_groups and groups >= num_ranks() else ALL

    @property
    def is_all(self) -> bool:
        """Whether it is the whole layer."""
        return self == ALL

    def of(self, per_output: Tensor) -> Tensor:
        """Return the part of a tensor (groups, out, …) that is of these outputs."""
        return per_output[self.groups, self.outputs]

    def of_rounding(self, rounding: Rounding) -> Rounding:
        """Return the layer of these outputs."""
        weight, affine = self.of(rounding.weight), rounding.affine.map(self.of)
        return replace(rounding, weight=weight.contiguous(), affine=affine)

    def joined(self, part: Tensor, rounding: Rounding) -> Tensor:
        """Return (groups, out, …) of what each rank has found for its share: memory of its own."""
        if self.is_all:
            return part.clone(memory_format=torch.contiguous_format)
        whole = part.new_zeros(*rounding.weight.shape[:2], *part.shape[2:])
        whole[self.groups, self.outputs] = part
        sum_over_ranks(whole)
        return whole


def _own(number: int) -> slice:
    return slice(rank() * number // num_ranks(), (rank() + 1) * number // num_ranks())


ALL = Share(_EACH, _EACH)
