"""Attention in plain operations: linear layers that can be quantized, and their product.

Before:  attn = MultiheadAttention(q, k, v)
After:   in_proj = linear(q, attn.in_proj_weight, attn.in_proj_bias)  # three unless q is k is v
         attention = scaled_dot_product_attention(…heads of in_proj…)
         out_proj = attn.out_proj(…attention…)

Each function computes what PyTorch or torchvision computes in eval mode and without gradients, fast
path or not, for batched and unbatched inputs: nothing here needs to know ranks, types or sizes.
What does is a call in the graph that looks at them when it runs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from fxquant.capture.attention.masks import FastPath, attention_mask
from fxquant.modules.layers import layer_type
from fxquant.modules.overrides import why_overridden


def record(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `function`; where an argument is traced, the call stands in the graph as it is."""
    proxies: list[fx.Proxy] = []

    def look(value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            proxies.append(value)
        return value

    map_aggregate((args, kwargs), look)
    if not proxies:
        return function(*args, **kwargs)
    return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)


@dataclass(frozen=True)
class Attention:
    """What `nn.MultiheadAttention` computes with its parameters."""

    embed_dim: int
    num_heads: int
    weights: tuple[Any, ...]
    """Of the projections of query, key and value: one for all three, (3·E, E), or three."""
    bias: Any
    """Theirs, (3·E,), or None."""
    added: tuple[tuple[Any, Any], ...]
    """Keys and values that all queries see besides: (1, 1, E) each, or None for zeros."""
    out_proj: Callable[[Any], Any]
    batch_first: bool = False
    fast_path: FastPath = "never"

    def attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """Return the result, and the weights or None."""
        if is_causal and attn_mask is None and self.fast_path == "never":
            raise RuntimeError("is_causal is a hint on attn_mask, and there is none")
        projected = self._project(query, key, value)
        q, k, v = (split_heads(x, self.num_heads, self.batch_first) for x in projected)
        for bias_k, bias_v in self.added:
            k, v = self._append(k, bias_k), self._append(v, bias_v)
        by_hint = is_causal and key_padding_mask is None and not need_weights
        if by_hint and self.fast_path == "never":
            result = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out_proj(join_heads(result, self.batch_first)), None
        mask = None
        if attn_mask is not None or key_padding_mask is not None:
            mask = record(
                attention_mask, query, attn_mask, key_padding_mask, self.num_heads,
                added_keys=len(self.added), fast_path=self.fast_path, is_causal=by_hint,
            )  # fmt: skip
        if not need_weights:
            result = F.scaled_dot_product_attention(q, k, v, mask)
            return self.out_proj(join_heads(result, self.batch_first)), None
        weights = attention_weights(q * math.sqrt(self.num_heads / self.embed_dim), k, mask)
        result = self.out_proj(join_heads(weights @ v, self.batch_first))
        return result, weights.mean(-3) if average_attn_weights else weights

    def _project(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
        size = self.embed_dim
        if len(self.weights) == 1 and query is key and key is value:
            parts = F.linear(query, self.weights[0], self.bias).chunk(3, -1)
            return parts[0], parts[1], parts[2]
        places = [slice(start * size, (start + 1) * size) for start in range(3)]
        weights, biases = self.weights, [self.bias] * 3
        if len(weights) == 1:
            weights = tuple(weights[0][place] for place in places)
        if self.bias is not None:
            biases = [self.bias[place] for place in places]
        q, k, v = map(F.linear, (query, key, value), weights, biases)
        return q, k, v

    def _append(self, x: Any, bias: Any) -> Any:
        """Return (…, heads, S + 1, head_dim)."""
        if bias is None:
            return F.pad(x, (0, 0, 0, 1))
        heads = bias.unflatten(-1, (self.num_heads, -1)).squeeze(0).transpose(0, 1)
        return torch.cat([x, heads.expand_as(x[..., :1, :])], -2)


def split_heads(x: Any, num_heads: int, batch_first: bool) -> Any:
    """Return (N, S, E) or (S, N, E) as (N, heads, S, head_dim); (S, E) without an axis for N."""
    x = x.unflatten(-1, (num_heads, -1))
    return x.transpose(-3, -2) if batch_first else x.movedim(0, -2)


def attention_weights(q: Any, k: Any, mask: Any) -> Any:
    """Return (…, L, S): how much of each value is in each result."""
    scores = q @ k.transpose(-2, -1)
    return F.softmax(scores if mask is None else scores + mask, -1)


def join_heads(x: Any, batch_first: bool) -> Any:
    """Return what `split_heads` made of a tensor as it was."""
    x = x.transpose(-3, -2) if batch_first else x.movedim(-2, 0)
    return x.flatten(-2)


def attention_of(module: Any, fast_path: FastPath) -> Attention:
    """Return what an `nn.MultiheadAttention` computes."""
    own = (module.in_proj_weight,)
    separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return Attention(
        module.embed_dim,
        module.num_heads,
        own if module._qkv_same_embed_dim else separate,
        module.in_proj_bias,
        _added(module.bias_k, module.bias_v, module.add_zero_attn),
        parameters_of(module.out_proj),
        module.batch_first,
        fast_path,
    )


def _added(bias_k: Any, bias_v: Any, zero: bool) -> tuple[tuple[Any, Any], ...]:
    biases = ((bias_k, bias_v),) if bias_k is not None else ()
    return (*biases, (None, None)) if zero else biases


def parameters_of(layer: Any) -> Callable[[Any], Any]:
    """Return what computes with a linear layer's parameters, and nothing else that it may do."""
    is_plain = layer_type(layer) is not None and why_overridden(layer) is None
    return layer if is_plain else lambda x: F.linear(x, layer.weight, layer.bias)


def merges_masks_its_way(module: nn.MultiheadAttention) -> bool:
    """Say whether a subclass overrides what the fast path calls."""
    return type(module).merge_masks is not nn.MultiheadAttention.merge_masks


def fast_path_of(module: Any, query: Any, key: Any, value: Any) -> FastPath:
    """Return when an `nn.MultiheadAttention` called with these takes PyTorch's fast path."""
    is_fast = (
        torch.backends.mha.get_fastpath_enabled()
        and query is key
        and key is value
        and module.batch_first
        and module.num_heads % 2 == 0
        and module._qkv_same_embed_dim
        and module.in_proj_bias is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )
    return "bool masks" if is_fast else "never"


def multi_head_attention(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Return what `nn.MultiheadAttention.forward` returns, in eval mode."""
    return attention_of(self, fast_path_of(self, query, key, value)).attend(
        query,
        key,
        value,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )


_FUNCTIONS = (F.multi_head_attention_forward,)  # in a tuple, or tracing would put its own there
_SIGNATURE = inspect.signature(*_FUNCTIONS)
_CALL_OPTIONS = (
    "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


def functional_attention(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """Return what `F.multi_head_attention_forward` returns; None: it is to be called as it is.

    So is any other function.
    """
    if function is not _FUNCTIONS[0]:
        return None
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    drops = given["training"] and given["dropout_p"] > 0
    if drops or given["static_k"] is not None or given["static_v"] is not None:
        return None
    separate = tuple(given[f"{name}_proj_weight"] for name in "qkv")
    attention = Attention(
        given["embed_dim_to_check"],
        given["num_heads"],
        separate if given["use_separate_proj_weight"] else (given["in_proj_weight"],),
        given["in_proj_bias"],
        _added(given["bias_k"], given["bias_v"], given["add_zero_attn"]),
        lambda x: F.linear(x, given["out_proj_weight"], given["out_proj_bias"]),
    )
    options = {name: given[name] for name in _CALL_OPTIONS}
    return attention.attend(given["query"], given["key"], given["value"], **options)
