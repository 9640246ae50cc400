"""What a batch is, in the few words that an error has room for.

uint8 4×3×16×16
(float32 3×16×16, 7)
{input_ids: int64 2×5, attention_mask: int64 2×5}
a PIL image RGB 640×480
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import kind_of

_MOST_ITEMS = 4
_MOST_LETTERS = 40
_SIZES = (
    ("in_channels", "out_channels"),
    ("in_features", "out_features"),
    ("num_embeddings", "embedding_dim"),
    ("num_features",),
)


def described(value: Any) -> str:
    """Return types and shapes of what a model is given, of containers those of the first items.

    >>> described((torch.zeros(4, 3, 8, 8), [torch.zeros(4), 7]))
    '(float32 4×3×8×8, [float32 4, 7])'
    >>> described({"x": torch.zeros(2, 5, dtype=torch.int64), "text": None})
    '{x: int64 2×5, text: None}'
    """
    if isinstance(value, Tensor):
        return described_tensor(value)
    if is_array(value):
        return f"a NumPy array {value.dtype} {_times(value.shape)}".rstrip()
    if is_image(value):
        return f"a PIL image {value.mode} {_times(value.size)}"
    if isinstance(value, Mapping):
        items = [f"{key}: {described(each)}" for key, each in value.items()]
        return f"{{{_listed(items)}}}"
    if isinstance(value, (tuple, list)):
        inside = _listed([described(each) for each in value[: _MOST_ITEMS + 1]], len(value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        text = str(value)
        return repr(text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…")
    return kind_of(value)


def in_brackets(value: Any) -> str:
    """Return what a value is, in the brackets of its container if it is one.

    >>> in_brackets(torch.zeros(4)), in_brackets((torch.zeros(4), 7))
    ('(float32 4)', '(float32 4, 7)')
    """
    shown = described(value)
    return shown if isinstance(value, (tuple, list, Mapping)) else f"({shown})"


def described_tensor(tensor: Tensor) -> str:
    """Return type, shape, and, where it is not the CPU, device of a tensor.

    >>> described_tensor(torch.zeros(4, 3, dtype=torch.uint8)), described_tensor(torch.tensor(1.0))
    ('uint8 4×3', 'float32 scalar')
    """
    where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{type_name(tensor.dtype)} {_times(tensor.shape) or 'scalar'}{where}"


def described_layer(module: nn.Module) -> str:
    """Return the class of a module with the sizes that its inputs must fit.

    >>> described_layer(nn.Conv2d(3, 8, 3)), described_layer(nn.ReLU())
    ('Conv2d 3→8', 'ReLU')
    """
    return f"{type(module).__name__} {'→'.join(map(str, sizes_of_layer(module)))}".rstrip()


def sizes_of_layer(module: nn.Module) -> tuple[int, ...]:
    """Return how many channels, features or ids a layer takes, and how many it gives.

    >>> sizes_of_layer(nn.Conv2d(3, 8, 3)), sizes_of_layer(nn.ReLU())
    ((3, 8), ())
    """
    for names in _SIZES:
        found = [getattr(module, name, None) for name in names]
        sizes = tuple(size for size in found if isinstance(size, int))
        if len(sizes) == len(names):
            return sizes
    return ()


def type_name(dtype: torch.dtype) -> str:
    """Return "float32" of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def is_array(value: Any) -> bool:
    """Say whether a value is an array of NumPy's, or of what has its attributes."""
    return not isinstance(value, Tensor) and hasattr(value, "dtype") and hasattr(value, "shape")


def is_image(value: Any) -> bool:
    """Say whether a value is an image of PIL's, which need not be installed."""
    return type(value).__module__.startswith("PIL.") and hasattr(value, "mode")


def _listed(items: Sequence[str], number: int | None = None) -> str:
    number = len(items) if number is None else number
    if number <= _MOST_ITEMS:
        return ", ".join(items)
    return f"{', '.join(items[: _MOST_ITEMS - 1])}, … {number} in all"


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape)
