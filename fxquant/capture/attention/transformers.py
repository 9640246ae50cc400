"""The layers and stacks of `nn.Transformer` in plain operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxquant.capture.attention.masks import float_mask, nested_padding_mask, zero_padding
from fxquant.capture.attention.multi_head import attention_of, record
from fxquant.errors import CaptureError

_ACTIVATIONS = (F.relu, F.gelu)  # in a tuple, or tracing would put its own in their places


def encoder_layer(
    self: Any,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Any:
    """Return what `nn.TransformerEncoderLayer.forward` returns, in eval mode."""
    mask, padding = _float(src_mask, src), _float(src_key_padding_mask, src)
    is_fast = may_be_fast(self)

    def attend(x: Any) -> Any:
        if not is_fast:
            return self._sa_block(x, mask, padding, is_causal=is_causal)
        options = {"attn_mask": mask, "key_padding_mask": padding, "is_causal": is_causal}
        attention = attention_of(self.self_attn, "any masks")
        return self.dropout1(attention.attend(x, x, x, need_weights=False, **options)[0])

    if self.norm_first:
        x = src + attend(self.norm1(src))
        return x + self._ff_block(self.norm2(x))
    x = self.norm1(src + attend(src))
    return self.norm2(x + self._ff_block(x))


def encoder(
    self: Any,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Any:
    """Return what `nn.TransformerEncoder.forward` returns, in eval mode and without gradients."""
    mask, padding = _float(mask, src), _float(src_key_padding_mask, src)
    cuts = padding is not None and mask is None and _cuts_padding(self)
    is_checked = getattr(self, "mask_check", True)
    seen = record(nested_padding_mask, padding, is_checked) if cuts else padding
    is_causal, x = _hint(self, mask, is_causal), src
    for layer in self.layers:
        x = layer(x, src_mask=mask, is_causal=is_causal, src_key_padding_mask=seen)
    if cuts:
        x = record(zero_padding, x, padding, is_checked)
    return x if self.norm is None else self.norm(x)


def decoder(
    self: Any,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    """Return what `nn.TransformerDecoder.forward` returns, in eval mode."""
    tgt_is_causal, x = _hint(self, tgt_mask, tgt_is_causal), tgt
    for layer in self.layers:
        x = layer(
            x,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
    return x if self.norm is None else self.norm(x)


def transformer(
    self: Any,
    src: Tensor,
    tgt: Tensor,
    src_mask: Tensor | None = None,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    src_is_causal: bool | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    """Return what `nn.Transformer.forward` returns, in eval mode."""
    memory = self.encoder(
        src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
    )
    return self.decoder(
        tgt,
        memory,
        tgt_mask=tgt_mask,
        memory_mask=memory_mask,
        tgt_key_padding_mask=tgt_key_padding_mask,
        memory_key_padding_mask=memory_key_padding_mask,
        tgt_is_causal=tgt_is_causal,
        memory_is_causal=memory_is_causal,
    )


def _float(mask: Any, like: Any) -> Any:
    return None if mask is None else record(float_mask, mask, like)


def _hint(stack: Any, mask: Any, is_causal: bool | None) -> bool:
    """Return what a stack tells its layers of its mask.

    PyTorch's own compares the mask with a causal one, if it is not told. Its layers compute the
    same either way; others may not.
    """
    if is_causal is None and mask is not None and not all(map(_has_own_attention, stack.layers)):
        raise CaptureError("whether the mask is causal is decided by its values: give is_causal")
    return is_causal is True


def _has_own_attention(layer: Any) -> bool:
    kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    kind = next((kind for kind in kinds if type(layer).forward is kind.forward), None)
    return kind is not None and type(layer)._sa_block is kind._sa_block


def _cuts_padding(stack: Any) -> bool:
    """Say whether an `nn.TransformerEncoder` works on nested tensors where there is padding."""
    return torch.backends.mha.get_fastpath_enabled() and getattr(stack, "use_nested_tensor", False)


def may_be_fast(layer: Any) -> bool:
    """Say whether an `nn.TransformerEncoderLayer` takes PyTorch's fast path for batches."""
    attention = layer.self_attn
    return bool(
        torch.backends.mha.get_fastpath_enabled()
        and attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and layer.activation_relu_or_gelu
        and layer.norm1.eps == layer.norm2.eps
        and not any(map(_has_hooks, layer.modules()))
    )


def is_ignored_when_fast(layer: Any) -> bool:
    """Say whether something in a layer was changed that the fast path does not look at."""
    kind, parts = nn.TransformerEncoderLayer, dict(layer.named_children())
    plain = {"self_attn": nn.MultiheadAttention, "linear1": nn.Linear, "linear2": nn.Linear}
    plain |= {name: nn.LayerNorm for name in ("norm1", "norm2")}
    plain |= {name: nn.Dropout for name in ("dropout", "dropout1", "dropout2")}
    activation = layer.activation
    is_relu = activation is _ACTIVATIONS[0] or type(activation) is nn.ReLU
    is_gelu = activation is _ACTIVATIONS[1] or getattr(activation, "approximate", "") == "none"
    is_as_told = is_relu if layer.activation_relu_or_gelu == 1 else is_gelu
    return (
        not is_as_told
        or type(layer)._sa_block is not kind._sa_block
        or type(layer)._ff_block is not kind._ff_block
        or any(type(parts.get(name)) is not kind for name, kind in plain.items())
        or any("forward" in vars(part) for part in parts.values())
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
