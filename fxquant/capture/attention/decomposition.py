"""Which modules are traced as plain operations in the place of their own `forward`.

PyTorch's attention looks at ranks, types and values of its inputs to choose among kernels that
compute the same; the tracer could not follow, and nothing in them would be quantized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fxquant.capture.attention.multi_head import (
    functional_attention,
    merges_masks_its_way,
    multi_head_attention,
)
from fxquant.capture.attention.swin import window_attention, window_attention_3d
from fxquant.capture.attention.transformers import (
    decoder,
    encoder,
    encoder_layer,
    is_ignored_when_fast,
    may_be_fast,
    transformer,
)
from fxquant.modules.overrides import why_overridden
from fxquant.modules.torchvision_names import defined_as

_TORCH = "torch.nn.modules"
_SWIN = "torchvision.models.swin_transformer"
_FORWARDS: dict[str, Callable[..., Any]] = {
    f"{_TORCH}.activation.MultiheadAttention": multi_head_attention,
    f"{_TORCH}.transformer.TransformerEncoderLayer": encoder_layer,
    f"{_TORCH}.transformer.TransformerDecoderLayer": nn.TransformerDecoderLayer.forward,
    f"{_TORCH}.transformer.TransformerEncoder": encoder,
    f"{_TORCH}.transformer.TransformerDecoder": decoder,
    f"{_TORCH}.transformer.Transformer": transformer,
    f"{_SWIN}.ShiftedWindowAttention": window_attention,
    f"{_SWIN}.ShiftedWindowAttentionV2": window_attention,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": window_attention_3d,
}

_TRACED_INTO = (
    f"{_SWIN}._get_relative_position_bias",
    "torchvision.models.video.swin_transformer._get_relative_position_bias",
)
"""Functions that fx would take whole, and that compute with parameters alone."""


def is_decomposable(module: nn.Module) -> bool:
    """Say whether `module` runs a `forward` that there are plain operations for."""
    return defined_as(type(module).forward).removesuffix(".forward") in _FORWARDS


def decomposed(module: nn.Module) -> Callable[..., Any] | None:
    """Return what to trace in the place of `module.forward`, with the module as first argument.

    None: there is nothing, or the module is to be called as it is, since it has hooks, a `forward`
    of its own, or parts that were replaced.
    """
    if not is_decomposable(module) or why_overridden(module) is not None:
        return None
    if isinstance(module, nn.MultiheadAttention) and merges_masks_its_way(module):
        return None
    is_layer = isinstance(module, nn.TransformerEncoderLayer)
    if is_layer and may_be_fast(module) and is_ignored_when_fast(module):
        return None
    return _FORWARDS[defined_as(type(module).forward).removesuffix(".forward")]


def decomposed_call(function: Any, args: Any, kwargs: Any) -> Any:
    """Return what a call of a function gives in plain operations; None: there are none."""
    if defined_as(function) in _TRACED_INTO:
        return function(*args, **kwargs)
    return functional_attention(function, args, kwargs)


@contextlib.contextmanager
def decomposed_root(model: nn.Module) -> Iterator[None]:
    """Let a tracer, which asks the class of `model` for its `forward`, find plain operations."""
    own, forward = type(model), decomposed(model)
    if forward is not None:
        model.__class__ = type(own.__name__, (own,), {"forward": forward})
    try:
        yield
    finally:
        model.__class__ = own
