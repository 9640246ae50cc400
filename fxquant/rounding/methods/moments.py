"""The moments of a layer's inputs and errors that a regression needs, over all ranks.

    E[x̂],  E[e],  H = E[(x̂ - E[x̂]) (x̂ - E[x̂])ᵀ],  C = E[e (x̂ - E[x̂])ᵀ]

All tensors are grouped, as in `fxquant.rounding.methods.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.rounding.methods.losses import Rows, means_over_ranks
from fxquant.rounding.methods.products import gram_matrix


@dataclass(frozen=True, eq=False)
class InputMoments:
    """E[x̂], E[e], H and C."""

    inputs: Tensor
    """(groups, in)."""
    errors: Tensor
    """(groups, out)."""
    gram: Tensor
    """(groups, in, in)."""
    cross: Tensor
    """(groups, out, in)."""

    @classmethod
    def of(cls, rows: Rows, error: Tensor | None) -> InputMoments:
        """Gather them.

        Args:
            rows: whose inputs are x̂.
            error: e of each row, (groups, rows, out); None: 0.
        """
        if error is None:
            sums = rows.inputs.sum(dim=1), rows.outputs.new_zeros(rows.outputs[:, 0].shape)
        else:
            sums = rows.inputs.sum(dim=1), error.sum(dim=1)
        inputs, errors = means_over_ranks(rows, *sums)
        gram = gram_matrix(rows.inputs, inputs)
        if error is None:
            (gram,) = means_over_ranks(rows, gram)
            return cls(inputs, errors, gram, gram.new_zeros(*errors.shape, gram.shape[2]))
        # Of e about its mean: x̂ then needs no centred copy.
        cross = torch.bmm((error - errors[:, None]).mT, rows.inputs)
        return cls(inputs, errors, *means_over_ranks(rows, gram, cross))
