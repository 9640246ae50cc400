"""Names under which a graph's module can hold what its graph calls and reads.

    Before:  self.graph(x), self.layers.to(x), self.class(x)    # methods; no Python
    After:   self.graph_1(x), self.layers.to_1(x), self.class_1(x)

A `GraphModule` is a module with attributes and methods of its own, and its code is Python. So a
submodule or tensor that a model reaches as `self._modules["to"]`, or calls `graph`, as no plain
module does, gets a number behind its name.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Set
from typing import Any

from torch import fx, nn

KEY = "fxquant"
"""Where a model, and each node's `meta`, holds what fxquant knows of it."""
_NO_LETTER = re.compile(r"\W")
MODULES_OWN = frozenset(dir(nn.Module()))
GRAPH_MODULES_OWN = frozenset({*dir(fx.GraphModule(nn.Module(), fx.Graph())), KEY}) - MODULES_OWN
"""Attributes of every `GraphModule` that no plain module has."""


def use_free_names(root: nn.Module, graph: fx.Graph) -> None:
    """Let `root` hold what `graph` uses under names that can be used, and `graph` use these.

    Args:
        root: what the targets of the graph are names in; changed in place.
        graph: the same.
    """
    known: dict[tuple[nn.Module, str], str] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        path: list[str] = []
        holder: Any = root
        for name in str(node.target).split("."):
            registry = _registry(holder, known.get((holder, name), name))
            if (holder, name) not in known:
                hidden = GRAPH_MODULES_OWN if holder is root else frozenset(dir(type(holder)))
                known[holder, name] = _free_name(holder, name, hidden | MODULES_OWN)
                renamed = {known.get((holder, key), key): each for key, each in registry.items()}
                registry.clear()  # in place, and in the same order
                registry.update(renamed)
            path.append(known[holder, name])
            holder = registry[path[-1]]
        node.target = ".".join(path)
        if node.name == "self":
            node._rename(node.target)


def _registry(holder: Any, name: str) -> dict[str, Any]:
    """Return the dictionary of a module in which `name` is: a method may hide what is there."""
    attributes = vars(holder)
    registries = (attributes["_modules"], attributes["_parameters"], attributes["_buffers"])
    return next((each for each in registries if name in each), attributes)


def _free_name(holder: nn.Module, name: str, hidden: Set[str]) -> str:
    """Return `name`, with a number behind it if it is `hidden`, or no code can be made of it."""
    candidate, number = name, 0
    while _is_no_code(candidate) or candidate in hidden or (number and hasattr(holder, candidate)):
        number += 1
        candidate = f"{re.sub(_NO_LETTER, '_', name)}_{number}"
    return candidate


def _is_no_code(name: str) -> bool:
    if name.isidentifier():
        return keyword.iskeyword(name) or name == "self"
    return not name.isprintable() or bool(set(name) & set("\"'\\"))  # getattr(self, "1x")
