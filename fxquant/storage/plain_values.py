"""Values without parts, as JSON and back.

None, bool, int, str and finite float stand for themselves; anything else is a list that starts
with its kind: ["float", "inf"], ["torch", "float32"], ["device", "cpu"], ["range", 0, 3, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import EllipsisType, NoneType
from typing import Any

import torch

Json = Any
"""What `json` reads and writes."""


NAMED: dict[str, Any] = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.qscheme))
}
"""dtypes, layouts, memory formats and quantization schemes, by name."""


_KINDS: dict[type, tuple[str, Callable[[Any], list[Json]], Callable[..., Any]]] = {
    float: ("float", lambda value: [repr(value)], float),
    complex: ("complex", lambda value: [repr(value)], complex),
    EllipsisType: ("...", lambda value: [], lambda: ...),
    torch.dtype: ("torch", lambda value: [str(value)], NAMED.__getitem__),
    torch.layout: ("torch", lambda value: [str(value)], NAMED.__getitem__),
    torch.memory_format: ("torch", lambda value: [str(value)], NAMED.__getitem__),
    torch.qscheme: ("torch", lambda value: [str(value)], NAMED.__getitem__),
    torch.device: ("device", lambda value: [str(value)], torch.device),
    torch.Size: ("size", list, lambda *sizes: torch.Size(sizes)),
    range: ("range", lambda value: [value.start, value.stop, value.step], range),
}
_READERS = {kind: read for kind, _, read in _KINDS.values()}


def is_plain(value: object) -> bool:
    """Say whether `encode_plain` takes `value`; of a subclass it would lose the type."""
    return type(value) in (NoneType, bool, int, str) or type(value) in _KINDS


def encode_plain(value: Any) -> Json:
    """Return a plain value as JSON.

    >>> encode_plain(0.1), encode_plain(math.inf), encode_plain(torch.float32)
    (0.1, ['float', 'inf'], ['torch', 'torch.float32'])
    """
    if type(value) not in _KINDS or (type(value) is float and math.isfinite(value)):
        return value
    kind, write, _ = _KINDS[type(value)]
    return [kind, *write(value)]


def is_plain_tree(tree: Json) -> bool:
    """Say whether `tree` is what `encode_plain` returns."""
    return not isinstance(tree, (list, dict)) or (bool(tree) and tree[0] in _READERS)


def decode_plain(tree: Json) -> Any:
    """Return what `encode_plain` was given.

    >>> decode_plain(["torch", "torch.float32"])
    torch.float32
    """
    return _READERS[tree[0]](*tree[1:]) if isinstance(tree, list) else tree
