"""The sources of graphs that are gone, which fx would keep for ever.

fx compiles a graph anew whenever it changes or is copied, and keeps the source of each for
tracebacks: half a kilobyte for a small model, some 30 of a ResNet-50, a dozen times in every
`fxquant.quantize`.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.fx import graph_module

_suspects: set[str] = set()
"""Sources that no graph had the last time: another thread may just be compiling one."""


def forget_sources() -> None:
    """Forget the sources that no `GraphModule` runs, now and the last time."""
    kept: dict[str, str] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    unused = set(kept) - set(_running(fx.GraphModule))
    for name in unused & _suspects:
        kept.pop(name, None)
        linecache.cache.pop(name, None)
    _suspects.clear()
    _suspects.update(unused & kept.keys())


def _running(kind: Any) -> Iterator[str]:
    """Yield the names of the sources of graphs that are there: each has a class of its own."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    if code is not None:
        yield code.co_filename
    for each in kind.__subclasses__():
        yield from _running(each)
