"""What attention leaves out, as PyTorch's own modules read their masks: calls that stand in graphs.

A mask may be bool (True: left out) or float (added to the scores), for all samples or for each; its
rank and type are known when the graph runs. Each function returns floats to add to the scores.

In eval mode and without gradients, `nn.MultiheadAttention` and the layers of `nn.Transformer` take
a fast path for batched self-attention, and there masks mean something else: whatever is not 0 is
left out, and a query that may look at nothing gives NaN, where `scaled_dot_product_attention` gives
0. `nn.TransformerEncoder` computes nothing at padded positions and returns zeros in their place.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.stored_names import stored_as

FastPath: TypeAlias = Literal["never", "bool masks", "any masks"]
"""With which masks PyTorch takes its fast path for batched self-attention."""


@stored_as("float_mask")
def float_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as floats: of a bool mask, -inf where it is True.

    Raises:
        TypeError: it is neither bool nor float, which PyTorch refuses too.

    >>> float_mask(torch.tensor([True, False]), torch.ones(1))
    tensor([-inf, 0.])
    """
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise TypeError(f"an attention mask is a {mask.dtype}: give bool or float")
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


@stored_as("attention_mask")
def attention_mask(
    query: Tensor,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    num_heads: int,
    *,
    added_keys: int = 0,
    fast_path: FastPath = "never",
    is_causal: bool = False,
) -> Tensor:
    """Return the masks of a call of `nn.MultiheadAttention` as one: (L, S) or (N, heads, L, S).

    Args:
        query: (L, E), or batched: (N, L, E) or (L, N, E).
        attn_mask: (L, S), or (N·heads, L, S).
        key_padding_mask: (S,), or (N, S).
        num_heads: the number of heads.
        added_keys: keys that the module adds at the end of each sequence, for all to see.
        fast_path: when the masks are read as the fast path reads them.
        is_causal: off the fast path, let each query see the keys up to its own, whatever the mask.
    """
    is_batched = query.dim() == 3
    given = [mask for mask in (attn_mask, key_padding_mask) if mask is not None]
    is_float = any(mask.is_floating_point() for mask in given)
    is_fast = is_batched and (fast_path == "any masks" or (fast_path != "never" and not is_float))
    if is_causal and not is_fast:
        length = query.shape[-2]
        return query.new_full((length, length), float("-inf")).triu(1)
    parts = []
    if attn_mask is not None:
        mask = float_mask(attn_mask, query)
        is_per_head = is_batched and mask.dim() == 3
        parts.append(mask.reshape(-1, num_heads, *mask.shape[1:]) if is_per_head else mask)
    if key_padding_mask is not None:
        padding = float_mask(key_padding_mask, query)
        parts.append(padding[:, None, None, :] if is_batched else padding[None, :])
    merged = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    if is_fast:
        is_left_out = merged != 0
        merged = torch.zeros_like(merged).masked_fill(is_left_out, float("-inf"))
        merged = merged.masked_fill(is_left_out.all(-1, keepdim=True), float("nan"))
    return F.pad(merged, (0, added_keys)) if added_keys else merged


@stored_as("nested_padding_mask")
def nested_padding_mask(padding: Tensor, is_checked: bool) -> Tensor:
    """Return what to leave out in a stack whose padding is cut off: (N, S), or (S,) unchanged.

    A sample that is padding throughout may look at everything: nothing of it is left at the end.

    Args:
        padding: what is not 0 is padding, as floats.
        is_checked: cut only if the padding is at the end of each sequence; else the last ones are
            cut, as many as there is padding.
    """
    if padding.dim() == 1:
        return padding
    behind, is_cut = _behind(padding, is_checked)
    left_out = behind & ~behind.all(-1, keepdim=True)
    mask = torch.zeros_like(padding).masked_fill(left_out, float("-inf"))
    return torch.where(is_cut, mask, padding)


@stored_as("zero_padding")
def zero_padding(output: Tensor, padding: Tensor, is_checked: bool) -> Tensor:
    """Return (N, S, E) with zeros where the padding was cut off; arguments as above."""
    if padding.dim() == 1:
        return output
    behind, is_cut = _behind(padding, is_checked)
    return output.masked_fill((behind & is_cut)[..., None], 0.0)


def _behind(padding: Tensor, is_checked: bool) -> tuple[Tensor, Tensor]:
    """Return what stands behind as many positions as are no padding, and whether it is cut off."""
    is_padding = padding != 0
    num_kept = (~is_padding).sum(-1, keepdim=True)
    behind = torch.arange(padding.shape[-1], device=padding.device) >= num_kept
    return behind, ((behind == is_padding) | (not is_checked)).all()
