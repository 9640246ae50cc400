"""torchvision's attention in shifted windows, in plain operations.

Before:  attn = shifted_window_attention(x, qkv.weight, proj.weight, …)     # fx takes it whole
After:   windows = partition_windows(x, …); qkv = attn.qkv(windows)
         weights = softmax(…q @ k… + bias + window_mask(x, …)); attention = weights @ v
         proj = attn.proj(…attention…); return merge_windows(proj, x, …)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.capture.attention.multi_head import (
    attention_weights,
    join_heads,
    parameters_of,
    record,
    split_heads,
)
from fxquant.capture.attention.windows import merge_windows, partition_windows, window_mask


def window_attention(self: Any, x: Tensor) -> Any:
    """Return what torchvision's `ShiftedWindowAttention` and its second version return."""
    bias = self.get_relative_position_bias()
    return _attend_in_windows(self, x, bias, self.window_size, self.shift_size)


def window_attention_3d(self: Any, x: Tensor) -> Any:
    """Return what torchvision's `ShiftedWindowAttention3d` returns; small inputs shrink windows."""
    fit = type(self).forward.__globals__["_get_window_and_shift_size"]
    sizes = [x.shape[1], x.shape[2], x.shape[3]]
    fitting = fit(self.shift_size.copy(), sizes, self.window_size.copy())
    window, shift = fitting[0], fitting[1]
    return _attend_in_windows(self, x, self.get_relative_position_bias(window), window, shift)


def _attend_in_windows(self: Any, x: Any, bias: Any, window: Any, shift: Any) -> Any:
    windows = record(partition_windows, x, window, shift)  # (N, windows, positions, C)
    logit_scale = getattr(self, "logit_scale", None)
    if logit_scale is None or self.qkv.bias is None:
        projected = parameters_of(self.qkv)(windows)
    else:
        thirds = self.qkv.bias.chunk(3)
        no_key_bias = torch.cat([thirds[0], torch.zeros_like(thirds[1]), thirds[2]])
        projected = F.linear(windows, self.qkv.weight, no_key_bias)
    parts = projected.chunk(3, -1)
    q, k, v = (split_heads(parts[index], self.num_heads, True) for index in range(3))
    if logit_scale is None:
        q = q * (self.qkv.in_features // self.num_heads) ** -0.5
    else:
        q = F.normalize(q, dim=-1) * torch.clamp(logit_scale, max=math.log(100.0)).exp()
        k = F.normalize(k, dim=-1)
    mask = bias + record(window_mask, x, window, shift)  # (windows, heads, positions, positions)
    weights = attention_weights(q, k, mask)  # no more than four axes in ONNX's own attention
    result = parameters_of(self.proj)(join_heads(weights @ v, True))
    return record(merge_windows, result, x, window, shift)
