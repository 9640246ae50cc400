"""Blocks are learned with what they read beside: masks, and all that no rounding has reached."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.rounding.blocks.find import Block, find_blocks
from tests.helpers import Net, whole

GENERATOR = torch.Generator().manual_seed(0)


class Attention(nn.Module):
    """Attention over (N, L, 16) with a mask, and what is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor, mask: Any, shape: Any) -> Tensor:
        attention = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), mask)
        return self.out(attention).reshape(shape) + x  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Two of them, which read the shape of what no rounding has reached."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(16), nn.Linear(16, 16)
        self.one, self.two = Attention(), Attention()

    def forward(self, x: Tensor, mask: Any) -> Tensor:
        x = self.norm(x)
        shape = x.shape
        x = torch.tanh(self.first(x))
        return self.two(torch.tanh(self.one(x, mask, shape)), mask, shape)  # type: ignore[no-any-return]


def batches(mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(64, 6, 16, generator=GENERATOR)
    masks = torch.split(mask, 16) if len(mask) == 64 else [mask] * 4
    return list(zip(torch.split(x, 16), masks, strict=True))


def masks_of_samples() -> Tensor:
    seen = torch.rand(64, 6, 6, generator=GENERATOR) > 0.3
    return seen | torch.eye(6, dtype=torch.bool)


def one_mask() -> Tensor:
    return torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))


def attention_block(quantized: nn.Module) -> Block:
    first, _, block = find_blocks(whole(quantized))
    assert (first.name, block.name) == ("first", "two")
    return block


@pytest.mark.parametrize("mask", [masks_of_samples(), one_mask()], ids=["each its own", "one"])
@pytest.mark.parametrize("method", ["adaround", "adaquant"])
def test_attention_with_a_mask_is_learned_as_one(mask: Tensor, method: Any) -> None:
    torch.manual_seed(0)
    model, data = Encoder().eval(), batches(mask)
    options: dict[str, Any] = {"steps": 150, "end_bits": None, "activation_bits": 8}
    found = {}
    for blocks in (False, True):
        recipe = Recipe.adaround(weight_bits=2, blocks=blocks, method=method, **options)
        quantized = fxquant.quantize(model, data, recipe)
        with torch.no_grad():
            expected, result = (torch.cat([each(*b) for b in data]) for each in (model, quantized))
        found[blocks] = sqnr(expected, result)
    block = attention_block(quantized)
    assert [each.name for each in block.paths[0].context] == ["mask", "norm"]
    assert all(isinstance(each.layer, QuantizedLayer) for each in block.subgraphs)
    rounding = block.rounding
    assert rounding is not None
    assert rounding.kept
    assert rounding.error_learned < rounding.error_nearest
    assert found[True] > found[False] - 1


@dataclass
class Output:
    """What a model returns."""

    hidden: Tensor
    pooled: Tensor


def pair_of(hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    return hidden, pooled


fx.wrap("pair_of")


@pytest.mark.parametrize("make", [Output, pair_of, lambda a, b: {"hidden": a, "pooled": b}])
def test_what_a_model_returns_of_several_tensors_is_no_join(make: Any) -> None:
    model = Net(lambda m, x: make(y := m.a(x), torch.tanh(m.b(y[:, 0]))))
    model.a, model.b = nn.Linear(16, 16), nn.Linear(16, 4)
    recipe = Recipe.adaround(activation_bits=4, steps=4)
    quantized = fxquant.quantize(model, [torch.randn(8, 5, 16)], recipe)
    assert [block.name for block in find_blocks(whole(quantized))] == ["a", "b"]


def test_another_mask_gives_other_samples() -> None:
    """The mask is not that of the first batch, or of other samples."""
    torch.manual_seed(0)
    model, mask = Encoder().eval(), masks_of_samples()
    recipe = Recipe.adaround(weight_bits=8, blocks=True, steps=1, drop=0.0)
    quantized = fxquant.quantize(model, batches(mask), recipe)
    rounding = attention_block(quantized).rounding
    assert rounding is not None
    assert rounding.error_nearest < 1e-3  # of 8 bits; of a mask of other samples it is greater
