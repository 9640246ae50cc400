"""A model as a tree of JSON and a list of tensors: what of it `fxquant.storage.files` writes.

    Linear(2, 1, bias=False)  →  ["module", "torch.nn.modules.linear:Linear",
                                  {"_parameters": ["dict", {"weight": ["tensor", 0], "bias": null}],
                                   "in_features": 2, "out_features": 1}], [weight]

Values without parts are as in `fxquant.storage.plain_values`. All else is a list that starts with
its kind. Objects that can change are counted as they begin; one that is reached again is ["again",
n]. Attributes of modules that are as in an empty `nn.Module` are left out, and so is what fx can
make anew. `fxquant.storage.decoding` reads it all.
"""

from __future__ import annotations

import enum
import functools
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxquant.capture.graph_state import StatefulGraph
from fxquant.capture.region import Region
from fxquant.errors import StorageError
from fxquant.graph.journal import Journal
from fxquant.storage.allowed import has_name, name_of, needs_custom
from fxquant.storage.fields import REGISTRIES, SEALED, own_method
from fxquant.storage.graph_encoding import encode_graph
from fxquant.storage.plain_values import Json, encode_plain, is_plain
from fxquant.stored_names import stored_name

_BLANK = vars(nn.Module())
MAX_KEYS = 10_000
"""Of a set, or of a dictionary that has other keys than names."""
MADE_ANEW = vars(fx.GraphModule(nn.Module(), fx.Graph())).keys() - _BLANK.keys()
_FUNCTIONS = (FunctionType, BuiltinFunctionType, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_FIXED = (tuple, frozenset, slice, enum.Enum, functools.partial, MethodType, weakref.ref)


class Encoder:
    """What turns one model into a tree; `tensors` and `custom` are complete when it has.

    Raises:
        StorageError: by `encode`, for what cannot be stored, all of it with its places.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.paths: list[str] = []
        """Of the tensors, in the model."""
        self.custom: dict[str, Any] = {}
        """Classes and functions that loading needs, by name."""
        self._numbers: dict[int, tuple[int, object]] = {}  # with the object: no other gets its id
        self._places: dict[int, int] = {}  # in `tensors`
        self._problems: list[str] = []

    def encode(self, value: Any, path: str) -> Json:
        """Return the tree of `value`, which is at `path` in the model."""
        tree = self._encode(value, path)
        if self._problems:
            raise StorageError("; ".join(self._problems))
        return tree

    def _encode(self, value: Any, path: str) -> Json:
        """Return the tree, or note why there is none."""
        try:
            return self._tree(value, path)
        except StorageError as error:
            self._problems.append(str(error))
            return None

    def _tree(self, value: Any, path: str) -> Json:
        if is_plain(value):
            return encode_plain(value)
        if isinstance(value, Tensor):
            return ["tensor", self._place(value, path)]
        if isinstance(value, (type, *_FUNCTIONS)):
            return ["type" if isinstance(value, type) else "function", self.name(value, path)]
        if isinstance(value, _FIXED):
            return self._encode_fixed(value, path)
        if id(value) in self._numbers:
            return ["again", self._numbers[id(value)][0]]
        self._numbers[id(value)] = len(self._numbers), value
        if isinstance(value, nn.Module):
            return self._encode_module(value, path)
        if isinstance(value, (list, dict, set)):
            return self._encode_container(value, path)
        return self._encode_object(value, path)

    def name(self, value: Any, path: str) -> str:
        """Return the name of a class or function, and note it if it is the user's own."""
        name = name_of(value)
        if not has_name(value):
            raise StorageError(
                f"{path} is {value!r}, which is not in its module under its name: define it there "
                "with `def` or `class`"
            )
        if self.custom.get(name, value) is not value:
            raise StorageError(f"{path} is one of two different {name}: rename one of them")
        if needs_custom(value):
            self.custom[name] = value
        return name

    def _place(self, tensor: Tensor, path: str) -> int:
        if id(tensor) not in self._places:
            reason = _why_not_storable(tensor)
            if reason is not None:
                raise StorageError(f"{path} is a tensor {reason}")
            self._places[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.paths.append(path.partition(".")[2] or path)
        return self._places[id(tensor)]

    def _encode_fixed(self, value: Any, path: str) -> Json:
        if type(value) in (tuple, frozenset):
            return [type(value).__name__, *self._parts(value, path)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["namedtuple", self.name(type(value), path), *self._parts(value, path)]
        if isinstance(value, slice):
            return ["slice", *self._parts((value.start, value.stop, value.step), path)]
        if type(value) is functools.partial:
            return ["partial", *self._parts((value.func, value.args, value.keywords), path)]
        if isinstance(value, enum.Enum) and value.name in type(value).__members__:
            return ["enum", self.name(type(value), path), value.name]
        if isinstance(value, MethodType) and not isinstance(value.__self__, type):
            return ["method", self._encode(value.__self__, path), self.name(value.__func__, path)]
        if isinstance(value, weakref.ref) and value() is not None:
            return ["weakref", self._encode(value(), path)]
        raise _unstorable(value, path)

    def _encode_container(self, value: Any, path: str) -> Json:
        if type(value) in (list, immutable_list):
            return ["list", *self._parts(value, path)]
        if len(value) > MAX_KEYS and not isinstance(value, list):
            raise StorageError(f"{path} holds {len(value)} keys, where a file has {MAX_KEYS}")
        if type(value) is set:  # in an order that does not change from run to run
            return ["set", *self._parts(sorted(value, key=repr), path)]
        if type(value) in (dict, immutable_dict) and all(type(key) is str for key in value):
            return ["dict", {key: self._encode(value[key], f"{path}.{key}") for key in value}]
        kinds = {dict: "items", immutable_dict: "items", OrderedDict: "ordered"}
        if type(value) not in kinds:
            raise _unstorable(value, path)
        items = [
            [self._encode(each, f"{path}[{key!r}]") for each in (key, value[key])] for key in value
        ]
        return [kinds[type(value)], *items]

    def _parts(self, values: Any, path: str) -> list[Json]:
        return [self._encode(value, f"{path}[{index}]") for index, value in enumerate(values)]

    def _encode_module(self, module: nn.Module, path: str) -> Json:
        foreign = dict(_foreign_hooks(module, path))
        self._problems += foreign.values()
        state = {
            name: value
            for name, value in _state(module).items()
            if name not in foreign and not _is_blank(name, value)
        }
        for name in SEALED & state.keys():  # copies: a file has them nowhere else
            state[name] = (dict if name in REGISTRIES else OrderedDict)(state[name])
        if isinstance(module, Journal):
            state["lines"] = []  # these are facts about nodes: the graph has them
        if not isinstance(module, fx.GraphModule):
            return ["module", self.name(type(module), path), self._attributes(state, path)]
        for name in MADE_ANEW:
            state.pop(name, None)
        if isinstance(module, Region):
            head = ["region", self.name(state.pop("original_type"), path)]
        elif type(module).__mro__[1] in (fx.GraphModule, StatefulGraph):
            head = ["graph", type(module).__name__]
        else:
            raise _unstorable(module, path)
        attributes = self._attributes(state, path)
        return [*head, attributes, encode_graph(module.graph, self.name, self._encode, path)]

    def _attributes(self, state: dict[str, Any], path: str) -> Json:
        return {
            name: self._encode(value, path if name in REGISTRIES else f"{path}.{name}")
            for name, value in state.items()
        }

    def _encode_object(self, value: Any, path: str) -> Json:
        kind = type(value)
        if not _has_plain_state(kind):
            raise _unstorable(value, path)
        state = {name: getattr(value, name) for name in slot_names(kind) if hasattr(value, name)}
        state.update(getattr(value, "__dict__", {}))
        return ["object", self.name(kind, path), self._attributes(state, path)]


def slot_names(kind: type) -> list[str]:
    """Return the names of the slots of a class and its bases."""
    listed = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for each in listed for name in ([each] if isinstance(each, str) else each)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _state(module: nn.Module) -> dict[str, Any]:
    get_state = own_method(type(module), "__getstate__")
    state: dict[str, Any] = vars(module) if get_state is None else get_state(module)
    return state


def _is_blank(name: str, value: object) -> bool:
    """Say whether an attribute is as in a new module: no hooks, training, and so on."""
    if name not in _BLANK or type(value) is not type(_BLANK[name]):
        return False
    return value is _BLANK[name] or (isinstance(value, (dict, set)) and not value)


def _has_plain_state(kind: type) -> bool:
    """Say whether an object of `kind`, made in Python, is no more than its attributes."""
    methods = ("__reduce_ex__", "__reduce__")
    if any(getattr(kind, name) is not getattr(object, name) for name in methods):
        return False
    try:
        object.__new__(kind)
    except TypeError:
        return False
    return bool(kind.__flags__ & 1 << 9)  # Py_TPFLAGS_HEAPTYPE: the class is no static one of C


def _foreign_hooks(module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with hooks that are not fxquant's own, by where the module has them."""
    for kind, hooks in vars(module).items():
        if not kind.endswith("_hooks") or not isinstance(hooks, dict):
            continue
        for hook in hooks.values():
            owner = type(getattr(hook, "__self__", hook))
            if stored_name(owner) is None:
                name = getattr(hook, "__qualname__", owner.__qualname__)
                yield (
                    kind,
                    f"{path} ({type(module).__name__}) has the hook {name!r} in {kind}, which a "
                    "file cannot hold: remove it and register it again behind",
                )


def _why_not_storable(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"of type {_type_name(tensor)}: only Tensor and Parameter can be stored"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return f"of {tensor.layout}, {tensor.dtype}, on {tensor.device}: only plain ones with data"
    if not tensor.is_leaf:
        return "computed with gradients: detach() it"
    return None


def _unstorable(value: object, path: str) -> StorageError:
    return StorageError(
        f"{path} is a {_type_name(value)}, which a file cannot hold: delete it before saving"
    )


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
