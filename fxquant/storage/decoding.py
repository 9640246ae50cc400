"""From a tree of JSON and a list of tensors back to a model: see `fxquant.storage.encoding`.

No code of the model's classes runs: objects are made by `object.__new__` and get their attributes
one by one. Only `fx.GraphModule` is called, with graphs that `fxquant.storage.graph_encoding` has
checked.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, fx, nn

from fxquant.capture.graph_state import with_state
from fxquant.capture.region import build_region, reserve_hook_numbers
from fxquant.errors import StorageError
from fxquant.storage.allowed import Allowed
from fxquant.storage.encoding import MADE_ANEW, own_method, slot_names
from fxquant.storage.graph_encoding import decode_graph
from fxquant.storage.plain_values import Json, decode_plain, is_plain_tree

_OBJECTS = ("again", "graph", "module", "object", "region")


class Decoder:
    """What builds one model.

    Args:
        tensors: those that the tree speaks of.
        allowed: the classes and functions that it may name.
    """

    def __init__(self, tensors: Sequence[Tensor], allowed: Allowed) -> None:
        self._tensors = tensors
        self._allowed = allowed
        self._objects: list[Any] = []
        self._kinds: dict[str, Callable[..., Any]] = {
            "again": self._objects.__getitem__,
            "dict": self._dict,
            "enum": self._enum,
            "frozenset": lambda *parts: frozenset(map(self.decode, parts)),
            "function": allowed.function_named,
            "graph": self._graph,
            "items": lambda *items: self._items({}, items),
            "list": self._list,
            "method": self._method,
            "module": self._module,
            "namedtuple": self._namedtuple,
            "object": self._object,
            "ordered": lambda *items: self._items(OrderedDict(), items),
            "partial": lambda *parts: _partial(*map(self.decode, parts)),
            "region": self._region,
            "set": self._set,
            "slice": lambda *parts: slice(*map(self.decode, parts)),
            "tensor": self._tensors.__getitem__,
            "tuple": lambda *parts: tuple(map(self.decode, parts)),
            "type": allowed.type_named,
            "weakref": lambda part: weakref.ref(self.decode(part)),
        }

    def decode(self, tree: Json) -> Any:
        """Return the value of a tree; the order of calls is that of encoding."""
        if is_plain_tree(tree):
            return decode_plain(tree)
        kind, *parts = tree
        return self._kinds[kind](*parts)

    def _dict(self, parts: dict[str, Json]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        self._objects.append(made)
        made.update((name, self.decode(part)) for name, part in parts.items())
        return made

    def _items(self, made: dict[Any, Any], items: Sequence[Json]) -> dict[Any, Any]:
        self._objects.append(made)
        for key, value in items:
            decoded = self.decode(key)
            made[decoded] = self.decode(value)
        return made

    def _list(self, *parts: Json) -> list[Any]:
        made: list[Any] = []
        self._objects.append(made)
        made.extend(map(self.decode, parts))
        return made

    def _set(self, *parts: Json) -> set[Any]:
        made: set[Any] = set()
        self._objects.append(made)
        made.update(map(self.decode, parts))
        return made

    def _enum(self, kind: str, name: str) -> Any:
        return self._allowed.type_named(kind).__members__[name]  # type: ignore[attr-defined]

    def _namedtuple(self, name: str, *parts: Json) -> Any:
        kind = self._allowed.type_named(name)
        _require(issubclass(kind, tuple), f"a tuple of class {name!r}")
        return tuple.__new__(kind, map(self.decode, parts))

    def _method(self, owner: Json, name: str) -> MethodType:
        _require(owner[0] in _OBJECTS, f"a method {name!r} of what is no object")
        found = self.decode(owner)
        function = inspect.getattr_static(type(found), name)
        _require(isinstance(function, FunctionType), f"{name!r} as the name of a method")
        return MethodType(function, found)

    def _object(self, name: str, state: dict[str, Json]) -> Any:
        kind = self._allowed.type_named(name)
        _require(not hasattr(kind, "__del__"), f"an object of {name!r}, which runs code at its end")
        made: Any = object.__new__(kind)
        self._objects.append(made)
        slots = slot_names(kind)
        for attribute, part in state.items():
            if attribute in slots:
                object.__setattr__(made, attribute, self.decode(part))
            else:
                vars(made)[attribute] = self.decode(part)
        return made

    def _module(self, name: str, state: dict[str, Json]) -> nn.Module:
        kind = self._allowed.type_named(name)
        _require(issubclass(kind, nn.Module), f"a module of class {name!r}")
        made: nn.Module = object.__new__(kind)
        vars(made).update(vars(nn.Module()))
        return self._fill(made, state)

    def _graph(self, name: str, state: dict[str, Json], nodes: Json) -> fx.GraphModule:
        made: Any = with_state(fx.GraphModule(nn.Module(), fx.Graph(), name))
        return self._fill_graph(made, state, nodes)

    def _region(self, name: str, state: dict[str, Json], nodes: Json) -> fx.GraphModule:
        kind = self._allowed.type_named(name)
        _require(issubclass(kind, nn.Module), f"a module of class {name!r}")
        return self._fill_graph(build_region(kind, nn.Module(), fx.Graph()), state, nodes)

    def _fill_graph(
        self, made: fx.GraphModule, state: dict[str, Json], nodes: Json
    ) -> fx.GraphModule:
        own = {name: part for name, part in state.items() if name not in MADE_ANEW}
        self._fill(made, own)
        made.graph = decode_graph(nodes, made, self._allowed, self.decode)
        return made

    def _fill(self, module: nn.Module, state: dict[str, Json]) -> nn.Module:
        self._objects.append(module)
        decoded = {name: self.decode(part) for name, part in state.items()}
        set_state = own_method(type(module), "__setstate__")
        if set_state is None:
            vars(module).update(decoded)
        else:
            set_state(module, decoded)
        reserve_hook_numbers(module)
        return module


def _partial(function: Any, args: Any, keywords: Any) -> functools.partial[Any]:
    return functools.partial(function, *args, **keywords)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise StorageError(f"it holds {what}, which fxquant.save does not write")
