"""Attention in plain operations computes what PyTorch's does, whatever it is called with."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxquant
from fxquant.capture.attention.multi_head import multi_head_attention

BATCH, QUERIES, KEYS, SIZE = 2, 4, 5, 12


class Called(nn.Module):
    """A call of `attention` with tensors, by name, and options that are fixed."""

    def __init__(self, attention: nn.Module, names: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.attention, self.names, self.options = attention, names, options

    def forward(self, query: Any, key: Any, value: Any, first: Any, second: Any) -> Any:
        masks = dict(zip(self.names, (first, second), strict=False))
        inputs = (query, key, value)[: self.options.get("inputs", 3)]
        options = {name: each for name, each in self.options.items() if name != "inputs"}
        if options.pop("is_self", False):
            inputs = (query,) * 3
        return self.attention(*inputs, **masks, **options)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare tensors, or pairs of a tensor and a tensor or None."""
    pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else None
    for one, other in pairs or [(actual, expected)]:
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6, equal_nan=True)


def assert_traces(model: nn.Module, *inputs: Tensor) -> None:
    """Compare a model in eval mode and without gradients with its graph."""
    with torch.no_grad():
        assert_same(fxquant.trace(model)(*inputs), model.eval()(*inputs))


def mask(kind: str, *shape: int) -> Tensor | None:
    """Return a mask that leaves something to see everywhere, or one that does not."""
    if kind == "none":
        return None
    left_out = torch.rand(shape) < 0.4
    left_out[..., 0] = False
    if kind.startswith("blind"):
        left_out[(0,) * (len(shape) - 1)] = True
    if kind.endswith("bool"):
        return left_out
    scores = torch.randn(shape) if kind == "float" else torch.zeros(shape)
    return scores.masked_fill(left_out, float("-inf"))


KINDS = ("none", "bool", "float", "blind bool", "blind float")


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_multi_head_attention_is_what_pytorch_computes(data: st.DataObject) -> None:
    def choose(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    torch.manual_seed(0)
    batch_first, is_batched = choose(True, False), choose(True, True, False)
    is_self, dims = choose(True, False), choose(None, None, (8, 6))
    is_self = is_self and dims is None
    heads = choose(2, 3)
    attention = nn.MultiheadAttention(
        SIZE, heads, bias=choose(True, False), add_bias_kv=choose(False, True),
        add_zero_attn=choose(False, True), kdim=dims and dims[0], vdim=dims and dims[1],
        batch_first=batch_first,
    ).eval()  # fmt: skip
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)

    def tensor(length: int, size: int) -> Tensor:
        x = torch.randn(BATCH, length, size) if is_batched else torch.randn(length, size)
        return x if batch_first or not is_batched else x.transpose(0, 1).contiguous()

    keys = QUERIES if is_self else KEYS
    query = tensor(QUERIES, SIZE)
    key, value = (query, query) if is_self else (tensor(keys, dims[0] if dims else SIZE),) * 2
    if dims:
        value = tensor(keys, dims[1])
    shape = choose((), (heads * (BATCH if is_batched else 1),))
    drawn = {
        "attn_mask": mask(choose(*KINDS), *shape, QUERIES, keys),
        "key_padding_mask": mask(choose(*KINDS), *((BATCH,) if is_batched else ()), keys),
    }
    masks: dict[str, Any] = {name: each for name, each in drawn.items() if each is not None}
    options = {"need_weights": choose(True, False), "average_attn_weights": choose(True, False)}
    if "attn_mask" in masks:
        options["is_causal"] = choose(False, True)
    with torch.no_grad():
        expected = attention(query, key, value, **masks, **options)
        assert_same(
            multi_head_attention(attention, query, key, value, **masks, **options), expected
        )
        called = Called(attention, tuple(masks), **options, is_self=is_self)
        given_masks = (*masks.values(), query, query)[:2]
        assert_same(fxquant.trace(called)(query, key, value, *given_masks), expected)
