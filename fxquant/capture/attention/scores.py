"""How much of each value goes into each result of attention: a call that stands in graphs.

    softmax(s · q kᵀ + m), s = 1/√E by default

A mask's type and size are known when the graph runs. It means what it means to
`F.scaled_dot_product_attention`: of a bool mask True takes part, a float mask is added, and a query
that may look at nothing gives 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.stored_names import stored_as


@stored_as("attention_weights_of")
def attention_weights_of(
    scores: Tensor,
    query: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return (…, L, S), shaped and typed as `scores`.

    Args:
        scores: q kᵀ, (…, L, S).
        query: (…, L, E), of which E alone counts.
        mask: broadcasts to `scores`.
        is_causal: each query sees the keys up to its own.
        scale: s.

    >>> attention_weights_of(torch.zeros(2, 2), torch.ones(2, 4), is_causal=True)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if mask is None:
        return scores.softmax(-1)
    is_bool = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if is_bool else scores + mask
    is_blind = (scores == -math.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(is_blind, 0.0)
