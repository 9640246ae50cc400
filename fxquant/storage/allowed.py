"""Which classes and functions a saved model may name.

A file is data: loading it builds objects of classes, and graphs that call functions, by their
names. So that a file made by hand reaches no file, process or network, it may name only

* classes, functions and methods of fxquant with the mark of `fxquant.stored_names`;
* modules of torch.nn, torchvision.models, .ops and .transforms, and the few objects that these
  hold (`_OBJECTS`); as mere values also `Tensor` and builtin types;
* functions, operators, methods and attributes that `fxquant.storage.known_functions` knows;
* what the caller of `load` gives as `custom`.

Of fxquant a name is "fxquant:mark", wherever the thing is defined. Any other is "module:qualified
name", and must be where the thing is defined. Modules are imported only inside of the packages
above (`fxquant.stored_names.module_type_named`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Iterable
from types import FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import StorageError
from fxquant.storage.known_functions import (
    known_attributes,
    known_functions,
    known_methods,
    known_operator,
)
from fxquant.stored_names import (
    is_inside,
    loaded,
    module_type_named,
    stored_name,
    value_stored_as,
)

_REFUSED_CLASSES = ("Lambda", "PSRoIPool")
"""Modules that call what they hold, or end the process for sizes of 0."""
_OBJECTS = (
    "torchvision.models.detection._utils:BalancedPositiveNegativeSampler",
    "torchvision.models.detection._utils:BoxCoder",
    "torchvision.models.detection._utils:BoxLinearCoder",
    "torchvision.models.detection._utils:Matcher",
    "torchvision.models.detection._utils:SSDMatcher",
    "torchvision.ops.poolers:LevelMapper",
    "torchvision.transforms.functional:InterpolationMode",
)
_TYPES = (
    bool, complex, dict, enumerate, float, frozenset, int, list, NoneType, object, range, reversed,
    set, slice, str, tuple, type, zip, Tensor, collections.OrderedDict, collections.UserDict,
)  # fmt: skip
_OPERATOR = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_OPERATORS, _OWN = "torch.ops", "fxquant"


class Allowed:
    """What may be named, `custom` included.

    Args:
        custom: the caller's own classes and functions. The qualified name is enough: a module may
            have moved since, or have been `__main__`.

    Raises:
        StorageError: by the methods, for a name that is not allowed or that nothing has.
    """

    def __init__(self, custom: Iterable[type | Callable[..., Any]] = ()) -> None:
        own = list(custom)
        for each in own:
            if not hasattr(each, "__qualname__"):
                raise StorageError(f"custom: {each!r} is neither a class nor a function")
        self._custom: dict[str, Any] = {each.__qualname__: each for each in own}
        self._custom |= {name_of(each): each for each in own}

    def type_named(self, name: str) -> type:
        """Return a class."""
        found = self._find(name, _types(), module_type_named)
        is_known = isinstance(found, type) and (
            name in _types()
            or name in _OBJECTS
            or stored_name(found) is not None
            or self.is_custom(found)
            or (issubclass(found, nn.Module) and not issubclass(found, fx.GraphModule))
        )
        if not is_known or found.__name__ in _REFUSED_CLASSES:
            raise _refusal("class", name)
        return found  # type: ignore[no-any-return]

    def function_named(self, name: str) -> Callable[..., Any]:
        """Return a function, an operator, or a class of `custom`, which a graph may call."""
        found = self._find(name, known_functions())
        is_known = name in known_functions() or isinstance(found, _OPERATOR) or _is_own(found)
        if not (is_known or self.is_custom(found)):
            raise _refusal("function", name)
        return found  # type: ignore[no-any-return]

    def method_named(self, name: str) -> FunctionType:
        """Return a method of a class of fxquant's, or one of `custom`, which a file may bind."""
        found = self._find(name, {})
        is_method = isinstance(found, FunctionType) and "." in found.__qualname__
        if not is_method or (stored_name(found) is None and not self.is_custom(found)):
            raise _refusal("method", name)
        return found  # type: ignore[no-any-return]

    def is_custom(self, value: object) -> bool:
        """Say whether `value` is one of `custom`."""
        return any(value is each for each in self._custom.values())

    def lacks(self, name: str) -> bool:
        """Say whether `name`, which only `custom` can allow, is not there."""
        return name not in self._custom and name.partition(":")[2] not in self._custom

    def is_method(self, name: str) -> bool:
        """Say whether a graph may call the method `name` of what it computes."""
        own = (each for each in self._own_values() if callable(getattr(each, name, None)))
        return not name.startswith("_") and (name in known_methods() or any(own))

    def is_attribute(self, name: str) -> bool:
        """Say whether a graph may read the attribute `name` of what it computes."""
        is_known = name in known_attributes() or self.is_method(name)
        fields = (vars(each).get("__annotations__", {}) for each in self._own_values())
        return not name.startswith("_") and (is_known or any(name in each for each in fields))

    def _own_values(self) -> list[type]:
        """Return the classes of `custom` of which graphs compute objects: not the modules."""
        own = (each for each in self._custom.values() if isinstance(each, type))
        return [each for each in own if not issubclass(each, nn.Module)]

    def _find(
        self, name: str, known: dict[str, Any], search: Callable[[str], Any] | None = None
    ) -> Any:
        module, _, qualified_name = name.partition(":")
        found = self._custom.get(name, known.get(name))
        if found is None and module == _OPERATORS:
            return known_operator(qualified_name)
        if found is None and module == _OWN:
            found = value_stored_as(qualified_name)
        if found is None and search is not None:
            found = search(name)
        return self._custom.get(qualified_name) if found is None else found


def needs_custom(value: type | Callable[..., Any]) -> bool:
    """Say whether only `custom` allows a file to name `value`."""
    allowed = Allowed()
    other = allowed.type_named if isinstance(value, type) else allowed.method_named
    for find in (allowed.function_named, other):
        with contextlib.suppress(StorageError):
            if find(name_of(value)) is value:
                return False
    return True


def name_of(value: Any) -> str:
    """Return the name of a class, a function or an operator.

    >>> from fxquant.recipe.rule import Rule
    >>> name_of(torch.nn.Linear), name_of(Rule), name_of(torch.ops.aten.relu.default)
    ('torch.nn.modules.linear:Linear', 'fxquant:Rule', 'torch.ops:aten.relu.default')
    """
    if isinstance(value, _OPERATOR):
        return f"{_OPERATORS}:{value}"
    own = stored_name(value)
    if own is not None:
        return f"{_OWN}:{own}"
    return _names().get(id(value)) or f"{value.__module__}:{value.__qualname__}"


def has_name(value: type | Callable[..., Any]) -> bool:
    """Say whether one gets from the name of `value` back to it, or could if given it.

    >>> has_name(torch.nn.Linear), has_name(lambda x: x)
    (True, False)
    """
    name = name_of(value)
    if "<lambda>" in name:
        return False
    known = isinstance(value, _OPERATOR) or id(value) in _names() or "<locals>" in name
    return known or stored_name(value) is not None or loaded(name) is value


@functools.cache
def _names() -> dict[int, str]:
    named = {**known_functions(), **_types()}
    return {id(value): name for name, value in reversed(named.items())}  # the first name stays


@functools.cache
def _types() -> dict[str, type]:
    return {f"{each.__module__}:{each.__name__}": each for each in _TYPES}


def _is_own(value: object) -> bool:
    """Say whether `value` is a function of fxquant's for graphs: no method."""
    is_function = isinstance(value, FunctionType) and "." not in value.__qualname__
    return is_function and stored_name(value) is not None


def _refusal(kind: str, name: str) -> StorageError:
    module, _, qualified_name = name.partition(":")
    own = name.replace(":", ".") if module == _OPERATORS else qualified_name.rpartition(".")[2]
    is_ours = module != _OPERATORS and is_inside(module, ("torch", "torchvision", _OWN))
    is_missing = is_ours and loaded(name) is None
    reason, remedy = "files may not use", "if you know it and trust the file,"
    if is_missing:
        reason, remedy = "is not there in the versions installed here", "install others, or"
    return StorageError(
        f"it names the {kind} {name.replace(':', '.')!r}, which {reason}: {remedy} "
        f"load(path, custom=[{own}])"
    )
