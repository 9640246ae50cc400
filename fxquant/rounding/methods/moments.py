"""The moments of a layer's inputs and errors that a regression needs, over all ranks.

    E[x̂],  E[e],  H = E[(x̂ - E[x̂]) (x̂ - E[x̂])ᵀ],  C = E[e (x̂ - E[x̂])ᵀ]

All tensors are grouped, as in `fxquant.rounding.methods.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.rounding.methods.losses import Rows, mean_over_ranks
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
    def of(cls, rows: Rows, error: Tensor) -> InputMoments:
        """Gather them.

        Args:
            rows: whose inputs are x̂.
            error: e of each row, (groups, rows, out).
        """
        inputs, errors = (mean_over_ranks(each.sum(dim=1), rows) for each in (rows.inputs, error))
        gram = mean_over_ranks(gram_matrix(rows.inputs, inputs), rows)
        # Of e about its mean: x̂ then needs no centred copy.
        cross = rows.inputs.new_zeros(*errors.shape, rows.inputs.shape[2])
        if error.any():  # behind a `refit` that no samples confirm it is 0
            torch.bmm((error - errors[:, None]).mT, rows.inputs, out=cross)
        return cls(inputs, errors, gram, mean_over_ranks(cross, rows))
