"""Transformers in plain operations compute what PyTorch's do; what was changed is left whole."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from tests.capture.attention.test_multi_head import KINDS, assert_same, mask

pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched",
    "ignore:enable_nested_tensor",
    "ignore:The PyTorch API of nested tensors",
)
BATCH, LENGTH, MEMORY, SIZE = 3, 4, 5, 8


class Called(nn.Module):
    """A call of a model with some tensors by name, and options that are fixed."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.model, self.names, self.options = model, names, options

    def forward(self, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
        tensors = dict(zip(self.names, (a, b, c, d, e, f, g), strict=False))
        return self.model(**tensors, **self.options)


def assert_traces(model: nn.Module, tensors: Mapping[str, Tensor | None], **options: Any) -> None:
    """Compare a model in eval mode and without gradients with its plain operations, traced."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    values = [*given.values(), *[torch.zeros(1)] * 7][:7]
    called = Called(model, tuple(given), **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        gm = fxquant.trace(called)
        assert not any(isinstance(each, nn.MultiheadAttention) for each in gm.modules())
        assert_same(gm(*values), called(*values))


def padding(kind: str, shape: tuple[int, ...]) -> Tensor | None:
    """Return a mask of what is padded: at the end of each sequence, or anywhere."""
    if not kind.startswith("end"):
        found = mask(kind, *shape)
        if found is not None and kind == "float":
            found[..., 0] = 0.0  # PyTorch fails where nothing at all is kept
        return found
    ends = torch.randint(1, shape[-1] + 1, shape[:-1])
    if "blind" in kind:
        ends[(0,) * (len(shape) - 1)] = 0
    left_out = torch.arange(shape[-1]) >= ends[..., None]
    if kind.endswith("bool"):
        return left_out
    return torch.zeros(shape).masked_fill(left_out, float("-inf"))


PADDINGS = (*KINDS, "end bool", "end float", "end blind bool", "end blind float")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_an_encoder_is_what_pytorch_computes(data: st.DataObject) -> None:
    def choose(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    torch.manual_seed(0)
    batch_first, is_batched = choose(True, True, False), choose(True, True, False)
    heads, activation = choose(2, 2, 1), choose("relu", "gelu", F.silu, nn.GELU())
    model: Any = nn.TransformerEncoderLayer(
        SIZE, heads, 16, activation=activation, batch_first=batch_first,
        norm_first=choose(False, True), bias=choose(True, False),
    )  # fmt: skip
    names = ("src_mask", "src_key_padding_mask")
    is_stack = choose(True, False)
    if is_stack:
        norm = choose(None, nn.LayerNorm(SIZE))
        model = nn.TransformerEncoder(
            model, 2, norm, enable_nested_tensor=choose(True, False), mask_check=choose(True, False)
        )
        names = ("mask", "src_key_padding_mask")
    shape = (BATCH, LENGTH) if is_batched else (LENGTH,)
    src = torch.randn(*shape, SIZE)
    if is_batched and not batch_first:
        src = src.transpose(0, 1).contiguous()
    per_head = choose((), (heads * (BATCH if is_batched else 1),))
    masks = (mask(choose(*KINDS), *per_head, LENGTH, LENGTH), padding(choose(*PADDINGS), shape))
    options = {}
    if masks[0] is not None:
        options["is_causal"] = choose(False, True)
    assert_traces(model, {"src": src, **dict(zip(names, masks, strict=True))}, **options)


@pytest.mark.parametrize("kind", PADDINGS[1:])
@pytest.mark.parametrize("is_checked", [True, False])
def test_what_an_encoder_cuts_off_becomes_zeros(kind: str, is_checked: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(SIZE, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, mask_check=is_checked)
    masked = {"src_key_padding_mask": padding(kind, (BATCH, LENGTH))}
    assert_traces(model, {"src": torch.randn(BATCH, LENGTH, SIZE), **masked})


def test_a_layer_on_the_fast_path_leaves_out_what_is_not_0() -> None:
    layer = nn.TransformerEncoderLayer(SIZE, 2, 16, batch_first=True)
    scores = torch.tensor([0.0, 0.5, -0.5, 0.0]).expand(LENGTH, LENGTH)
    inputs = {"src": torch.randn(BATCH, LENGTH, SIZE), "src_mask": scores}
    assert_traces(layer, inputs)
    assert_traces(layer, {"src": inputs["src"][0], "src_mask": scores})


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_a_transformer_is_what_pytorch_computes(data: st.DataObject) -> None:
    def choose(*values: Any) -> Any:
        return data.draw(st.sampled_from(values))

    torch.manual_seed(0)
    batch_first, is_batched, heads = choose(True, False), choose(True, True, False), choose(2, 1)
    model: Any = nn.Transformer(
        SIZE, heads, 1, 2, 16, batch_first=batch_first, norm_first=choose(False, True),
        bias=choose(True, False), activation=choose("relu", F.silu),
    )  # fmt: skip
    lengths = {"src": MEMORY, "tgt": LENGTH, "memory": MEMORY}
    shape = (BATCH,) if is_batched else ()
    names = choose(("src", "tgt"), ("tgt", "memory"))
    if "memory" in names:
        model = model.decoder
    tensors: dict[str, Tensor | None] = {}
    for name in names:
        x = torch.randn(*shape, lengths[name], SIZE)
        tensors[name] = x if batch_first or not is_batched else x.transpose(0, 1).contiguous()
    sides = {"src": (MEMORY, MEMORY), "tgt": (LENGTH, LENGTH), "memory": (LENGTH, MEMORY)}
    for name in dict.fromkeys((*names, "memory")):
        tensors[f"{name}_mask"] = mask(choose(*KINDS), *sides[name])
        kind = choose(*PADDINGS)
        tensors[f"{name}_key_padding_mask"] = padding(kind, (*shape, lengths[name]))
    hints = {}
    if tensors["tgt_mask"] is not None:
        hints["tgt_is_causal"] = choose(None, False, True)
    assert_traces(model, dict(list(tensors.items())[:7]), **hints)
