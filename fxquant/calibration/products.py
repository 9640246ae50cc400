"""How many multiply-adds PyTorch's operators take: those that sum up products.

    convolution:       values of the result × in/groups × kernel
    transposed:        values of the input × out/groups × kernel
    matrix product:    values of the left × columns of the right
    attention:         batch × heads × queries × keys × (width of a key + width of a value)
    recurrent layer:   time steps × batch × values of its matrices

What only multiplies, as a mean, a norm or an activation function does, takes none. The counts are
those of `torch.utils.flop_counter`, which gives two for each, where that has one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Formula = Callable[[tuple[Any, ...], Any], int]


def _matrices(left: Tensor, right: Tensor, *_: Any) -> int:
    return left.numel() * right.shape[-1]


def _convolution(x: Tensor, weight: Tensor, result: Tensor, transposed: bool = False) -> int:
    return (x if transposed else result).numel() * math.prod(weight.shape[1:])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _multihead(query: Tensor, key: Tensor, value: Tensor, width: int) -> int:
    """Return those of projections in and out and of both products; samples may be nested."""
    pairs = zip(query.unbind(), key.unbind(), strict=True)
    scores = sum([one.shape[0] * other.shape[0] for one, other in pairs])
    return width * (2 * query.numel() + key.numel() + value.numel() + 2 * scores)


def _encoder_layer(arguments: tuple[Any, ...]) -> int:
    source, width, first, second = (arguments[place] for place in (0, 1, 14, 16))
    attention = _multihead(source, source, source, width)
    behind: int = source.numel() // width * (first.numel() + second.numel())
    return attention + behind


def _recurrent(x: Tensor, weights: Sequence[Tensor]) -> int:
    values = sum(each.numel() for each in weights if each.dim() == 2)
    return x.numel() // x.shape[-1] * values


def _trilinear(tensors: tuple[Tensor, ...], new_axes: tuple[list[int], ...]) -> int:
    expanded = []
    for tensor, axes in zip(tensors, new_axes, strict=True):
        for axis in axes:
            tensor = tensor.unsqueeze(axis)
        expanded.append(tensor.shape)
    return math.prod(max(sizes) for sizes in zip(*expanded, strict=True))


_ROWS: tuple[tuple[Formula, tuple[str, ...]], ...] = (
    (lambda a, _: _matrices(*a), ("aten.mm", "aten.bmm", "aten._int_mm", "aten._scaled_mm")),
    (lambda a, _: _matrices(*a[1:]), (
        "aten.addmm", "aten.baddbmm", "aten.addbmm", "aten._addmm_activation",
    )),
    (lambda a, _: a[0].numel(), ("aten.mv", "aten.dot", "aten.vdot")),
    (lambda a, _: a[1].numel(), ("aten.addmv",)),
    (lambda a, _: a[0].numel() * a[1].shape[0], ("aten.linear",)),
    (lambda a, result: _convolution(a[0], a[1], result, a[6]), ("aten.convolution",)),
    (lambda a, result: _convolution(a[0], a[1], result), ("torchvision.deform_conv2d",)),
    (lambda a, result: result.numel() * math.prod(a[1].shape[:2]), ("aten.conv_tbc",)),
    (lambda a, _: _trilinear(a[:3], a[3:6]), ("aten._trilinear",)),
    (lambda a, _: _attention(*a), (
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
    )),
    (lambda a, _: _multihead(*a[:4]), ("aten._native_multi_head_attention",)),
    (lambda a, _: _encoder_layer(a), ("aten._transformer_encoder_layer_fwd",)),
    (lambda a, _: _recurrent(a[0], a[1:5]), ("aten.mkldnn_rnn_layer",)),
    (lambda a, _: _recurrent(a[0], a[1]), ("aten._cudnn_rnn", "aten.miopen_rnn")),
)  # fmt: skip
_FORMULAS = {name: formula for formula, names in _ROWS for name in names}


@functools.cache
def formula_of(operator: object) -> Formula | None:
    """Return what counts the multiply-adds of an operator's calls, None if it sums no products.

    The formula takes the arguments and the result, as a dispatch mode sees them.

    >>> import torch
    >>> formula = formula_of(torch.ops.aten.mm.default)
    >>> formula((torch.ones(2, 3), torch.ones(3, 4)), torch.ones(2, 4))
    24
    """
    return _FORMULAS.get(str(operator).rpartition(".")[0])  # aten.mm.default
