"""From a tree of JSON and a list of tensors back to a model: see `fxquant.storage.encoding`.

No code of the model's classes runs: objects are made by `object.__new__` and get their attributes
one by one, once `fxquant.storage.fields` has checked them. Of fxquant's own classes the checks of
their values run, and `fx.GraphModule` makes code of the graphs that
`fxquant.storage.graph_encoding` has checked, when everything is in place.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, fx, nn

from fxquant.capture.graph_state import with_state
from fxquant.capture.recording.sources import forget_sources
from fxquant.capture.region import build_region, reserve_hook_numbers
from fxquant.errors import StorageError, kind_of
from fxquant.storage.allowed import Allowed
from fxquant.storage.encoding import MADE_ANEW, MAX_KEYS, slot_names
from fxquant.storage.fields import SEALED, check_fields, check_made, own_method
from fxquant.storage.graph_encoding import decode_graph
from fxquant.storage.known_functions import is_harmless
from fxquant.storage.plain_values import Json, decode_plain, is_plain_tree
from fxquant.stored_names import stored_name

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
        """Those that can change, as they began."""
        self._graphs: list[tuple[fx.GraphModule, fx.Graph]] = []
        self._kinds: dict[str, Callable[..., Any]] = {
            "again": lambda number: self._objects[_index(number)],
            "dict": self._dict,
            "enum": self._enum,
            "frozenset": lambda *parts: frozenset(map(self._value, _few(parts))),
            "function": self._function,
            "graph": self._graph,
            "items": lambda *items: self._items({}, items),
            "list": self._list,
            "method": self._method,
            "module": self._module,
            "namedtuple": self._namedtuple,
            "object": self._object,
            "ordered": lambda *items: self._items(OrderedDict(), items),
            "partial": self._partial,
            "region": self._region,
            "set": self._set,
            "slice": lambda *parts: slice(*map(self._value, parts)),
            "tensor": lambda number: self._tensors[_index(number)],
            "tuple": lambda *parts: tuple(map(self._value, parts)),
            "type": allowed.type_named,
            "weakref": lambda part: weakref.ref(self._value(part)),
        }

    def decode(self, tree: Json, *, with_code: bool = True) -> Any:
        """Return the value of a tree; its graphs have code only if asked for.

        Raises:
            StorageError: it holds what it may not, or what makes no sense.
        """
        try:
            value = self._value(tree)
            for made, graph in self._graphs if with_code else ():
                made.graph = graph
        except StorageError:
            raise
        except Exception as error:  # made by hand, or for classes that have changed since
            raise StorageError(f"it cannot be built: {type(error).__name__}: {error}") from error
        finally:
            forget_sources()
        return value

    def _value(self, tree: Json) -> Any:
        """Return the value of a part; the order of calls is that of encoding."""
        if is_plain_tree(tree):
            return decode_plain(tree)
        kind, *parts = tree
        return self._kinds[kind](*parts)

    def _dict(self, parts: dict[str, Json]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        self._objects.append(made)
        made.update((name, self._value(part)) for name, part in parts.items())
        return made

    def _items(self, made: dict[Any, Any], items: Sequence[Json]) -> dict[Any, Any]:
        self._objects.append(made)
        for key, value in _few(items):
            decoded = self._value(key)
            made[decoded] = self._value(value)
        return made

    def _list(self, *parts: Json) -> list[Any]:
        made: list[Any] = []
        self._objects.append(made)
        made.extend(map(self._value, parts))
        return made

    def _set(self, *parts: Json) -> set[Any]:
        made: set[Any] = set()
        self._objects.append(made)
        made.update(map(self._value, _few(parts)))
        return made

    def _enum(self, kind: str, name: str) -> Any:
        return self._allowed.type_named(kind).__members__[name]  # type: ignore[attr-defined]

    def _function(self, name: str) -> Callable[..., Any]:
        function = self._allowed.function_named(name)
        _require(is_harmless(function), f"the function {name!r} as a value")
        return function

    def _partial(self, *parts: Json) -> functools.partial[Any]:
        function, args, keywords = map(self._value, parts)
        _require(parts[0][0] in ("function", "type"), "a partial call of what is no function")
        return functools.partial(function, *args, **keywords)

    def _namedtuple(self, name: str, *parts: Json) -> Any:
        kind = self._allowed.type_named(name)
        fields = getattr(kind, "_fields", None)
        _require(issubclass(kind, tuple) and fields is not None, f"a tuple of class {name!r}")
        values = tuple(map(self._value, parts))
        assert fields is not None
        _require(len(values) == len(fields), f"a {name!r} of {len(values)} values")
        if stored_name(kind) is not None:
            check_fields(kind, dict(zip(fields, values, strict=True)))
        return tuple.__new__(kind, values)

    def _method(self, owner: Json, name: str) -> MethodType:
        _require(owner[0] in _OBJECTS, f"a method {name!r} of what is no object")
        found, function = self._value(owner), self._allowed.method_named(name)
        is_own = inspect.getattr_static(type(found), function.__name__, None) is function
        _require(is_own, f"the method {name!r} of {kind_of(found)}")
        return MethodType(function, found)

    def _object(self, name: str, state: dict[str, Json]) -> Any:
        kind = self._allowed.type_named(name)
        _require(not issubclass(kind, nn.Module), f"the module {name!r} as an object")
        _require(not hasattr(kind, "__del__"), f"an object of {name!r}, which runs code at its end")
        made: Any = object.__new__(kind)
        self._objects.append(made)
        decoded = {attribute: self._value(part) for attribute, part in state.items()}
        slots = slot_names(kind)
        check_fields(kind, {each: value for each, value in decoded.items() if each not in slots})
        for attribute, value in decoded.items():
            if attribute in slots:
                object.__setattr__(made, attribute, value)
            else:
                vars(made)[attribute] = value
        check_made(made)
        return made

    def _module(self, name: str, state: dict[str, Json]) -> nn.Module:
        kind = self._allowed.type_named(name)
        _require(issubclass(kind, nn.Module), f"a module of class {name!r}")
        made: nn.Module = object.__new__(kind)
        vars(made).update(vars(nn.Module()))
        return self._fill(made, state)

    def _graph(self, name: str, state: dict[str, Json], nodes: Json) -> fx.GraphModule:
        _require(isinstance(name, str) and name.isidentifier(), f"a graph called {name!r}")
        made: Any = with_state(fx.GraphModule(nn.Module(), fx.Graph(), name))
        return self._fill_graph(made, state, nodes)

    def _region(self, name: str, state: dict[str, Json], nodes: Json) -> fx.GraphModule:
        kind = self._allowed.type_named(name)
        _require(issubclass(kind, nn.Module), f"a module of class {name!r}")
        return self._fill_graph(build_region(kind, nn.Module(), fx.Graph()), state, nodes)

    def _fill_graph(
        self, made: fx.GraphModule, state: dict[str, Json], nodes: Json
    ) -> fx.GraphModule:
        _require(not state.keys() & MADE_ANEW, "in a graph's module what fx makes itself")
        self._fill(made, state)
        graph = decode_graph(nodes, made, self._allowed, self._value)
        self._graphs.append((made, graph))
        vars(made)["_graph"] = graph
        return made

    def _fill(self, module: nn.Module, state: dict[str, Json]) -> nn.Module:
        """Give a module its attributes; what it says of itself is checked before."""
        self._objects.append(module)
        for name in state.keys() & SEALED:
            kind = state[name][0]
            _require(kind in ("dict", "ordered"), f"{name} of {type(module).__name__} as a {kind}")
        decoded = {name: self._value(part) for name, part in state.items()}
        check_fields(type(module), decoded)
        set_state = own_method(type(module), "__setstate__")
        if set_state is None:
            vars(module).update(decoded)
        else:
            set_state(module, decoded)
        check_made(module)
        reserve_hook_numbers(module)
        return module


def _index(number: Any) -> int:
    """Return the number of an object or tensor."""
    _require(type(number) is int and number >= 0, f"the number {number!r}")
    return number  # type: ignore[no-any-return]


def _few(parts: Sequence[Json]) -> Sequence[Json]:
    """Return parts that are to be hashed: of many their file could make all hashes the same."""
    _require(len(parts) <= MAX_KEYS, f"{len(parts)} keys in a set or dictionary")
    return parts


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise StorageError(f"it holds {what}, which fxquant.save does not write")
