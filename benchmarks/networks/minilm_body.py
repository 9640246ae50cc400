"""The body of MiniLM-L6: six encoder layers of BERT, 384 wide with 12 heads, from tokens to tokens.

Sizes are those of `sentence-transformers/all-MiniLM-L6-v2`. That it may run where images do, it
takes one: the rows of an image (3, 128, 128) are 128 embedded tokens of 3 · 128 values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, INNER, LAYERS = 128, 384, 12, 1536, 6
_EPS = 1e-12  # of the layer norms


class EncoderLayer(nn.Module):
    """Attention, then two linear layers with GELU between; a layer norm behind each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.attention_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, eps=_EPS)
        self.widen, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, tokens, width)."""
        batch = x.shape[0]
        q, k, v = (
            layer(x).view(batch, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = self.attention_norm(self.out(seen.reshape(batch, TOKENS, WIDTH)) + x)
        result: Tensor = self.norm(self.narrow(F.gelu(self.widen(x))) + x)
        return result


class MiniLmBody(nn.Module):
    """Six layers, and the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EncoderLayer() for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (N, width) of images (N, 3, tokens, width/3)."""
        tokens = x.transpose(1, 2).reshape(x.shape[0], TOKENS, WIDTH)
        return torch.mean(self.layers(tokens), 1)
