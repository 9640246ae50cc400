"""What the state of a module or an object may be, checked before anything uses it.

The fields of fxquant's own classes have the types that the classes declare, and values that agree
(`__post_init__`, `check_stored`). Of every module the registries hold what PyTorch puts there and
hooks are fxquant's own. No field has the name of a method: it would be called in its place.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from types import FunctionType, MethodType, NoneType
from typing import Any, ClassVar, Literal, Union

from torch import Tensor, nn

from fxquant.capture.region import Region
from fxquant.errors import StorageError, kind_of
from fxquant.storage.plain_values import is_plain
from fxquant.stored_names import stored_name

_HOOK_NUMBERS = 2**31
"""Below this. PyTorch counts the hooks of a process from 0, and gives the next behind the last."""
_POSITIVE = ("stride", "dilation", "kernel_size", "groups")
_METHODS = (
    FunctionType, staticmethod, classmethod, property, types.BuiltinFunctionType,
    types.MethodDescriptorType, types.WrapperDescriptorType,
)  # fmt: skip
_NOTHING = object()
_BLANK = vars(nn.Module())
REGISTRIES = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOK_FLAGS = (
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_OF_MODULES: dict[str, Any] = {
    "training": bool,
    "_parameters": dict[str, nn.Parameter | None],
    "_buffers": dict[str, Tensor | None],
    "_modules": dict[str, nn.Module | None],
    "_non_persistent_buffers_set": set[str],
    "_is_full_backward_hook": bool | None,
    **dict.fromkeys(_HOOKS, dict[int, Any]),
    **dict.fromkeys(_HOOK_FLAGS, dict[int, bool]),
}
SEALED = frozenset({*REGISTRIES, *_HOOKS, *_HOOK_FLAGS})
"""Dictionaries of modules that nothing else may hold: it could fill them behind their check."""


def check_fields(kind: type, state: Mapping[str, Any]) -> None:
    """Raise `StorageError` if an object of `kind` cannot have such attributes.

    Args:
        kind: a class that may be named.
        state: its attributes, before it has them.
    """
    is_module = issubclass(kind, nn.Module)
    declared = Region if issubclass(kind, Region) else kind
    is_own = declared.__module__.startswith("fxquant.")
    hints: dict[str, Any] = _hints(declared) if is_own else {}  # type: ignore[arg-type]
    for name, value in state.items():
        _require(
            name.isidentifier() and not name.startswith("__"), kind, name, value, "such a name"
        )
        if is_module and (name in _OF_MODULES or name in _BLANK):
            _check_modules_own(kind, name, value)
            continue
        hidden = inspect.getattr_static(kind, name, _NOTHING)
        # PyTorch and fx call what a class has under private names, as _compiled_call_impl.
        is_called = name.startswith("_") and hidden is not _NOTHING and callable(value)
        is_method = isinstance(hidden, _METHODS) or is_called
        _require(not is_method, kind, name, value, "the name of a method")
        if name in hints:
            _require(matches(value, hints[name]), kind, name, value, f"no {_text(hints[name])}")
        elif is_own and not _is_open(kind):
            _require(False, kind, name, value, "a field that the class has not")
    if is_own or kind.__module__.startswith("torch"):
        _check_geometry(kind, state)


def check_made(made: object) -> None:
    """Raise what the class of fxquant's own says if the fields of `made` contradict each other."""
    for name in ("__post_init__", "check_stored"):
        check = own_method(type(made), name)
        if check is not None:
            check(made)


def own_method(kind: type, name: str) -> Callable[..., Any] | None:
    """Return a method of a class, if it is fxquant that defines it.

    As that of `__getstate__` and `__setstate__`.
    """
    method = getattr(kind, name, None)
    return method if str(getattr(method, "__module__", "")).startswith("fxquant.") else None


def _check_modules_own(kind: type, name: str, value: Any) -> None:
    """Check an attribute that every module has."""
    hint = _OF_MODULES.get(name, NoneType)
    is_blank = type(value) is type(_BLANK.get(name)) and not value
    fits = is_blank or matches(value, hint)
    _require(fits, kind, name, value, f"no {_text(hint)}")
    for key, each in value.items() if isinstance(value, dict) else ():
        if name in REGISTRIES:
            is_name = bool(key) and "." not in key and not hasattr(nn.Module, key)
            _require(is_name, kind, f"{name}[{key!r}]", each, "such a name")
        else:
            _require(0 <= key < _HOOK_NUMBERS, kind, f"{name}[{key}]", each, "such a number")
        if name in _HOOKS:
            owner = type(each.__self__) if isinstance(each, MethodType) else type(each)
            is_ours = stored_name(owner) is not None and callable(each)
            _require(is_ours, kind, f"{name}[{key}]", each, "no hook of fxquant's")


def _check_geometry(kind: type, state: Mapping[str, Any]) -> None:
    """Check what kernels divide by."""
    for name in _POSITIVE:
        value = state.get(name)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            is_positive = each is None or (type(each) is int and each > 0)
            _require(is_positive, kind, name, value, "not positive")


def _is_open(kind: type) -> bool:
    """Say whether a class of fxquant's is also a layer of PyTorch's, and has all that one had."""
    bases = (base for base in kind.__mro__ if base.__module__.startswith("torch."))
    return any(base is not nn.Module and issubclass(base, nn.Module) for base in bases)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a class of fxquant's own, and of its bases."""
    hints = typing.get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


def matches(value: Any, hint: Any) -> bool:
    """Say whether `value` is of the type that an annotation states; an int will do for a float.

    >>> matches((1, 2), tuple[int, ...]), matches([True], list[int]), matches(None, int | None)
    (True, False, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint in (None, NoneType):
        return value is None
    if origin in (Union, types.UnionType):
        return any(matches(value, each) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if hint in (int, float, bool, str):  # a bool is no number here
        return type(value) is hint or (hint is float and type(value) is int)
    if origin is tuple and isinstance(value, (tuple, list)) and args[1:] != (...,):
        return len(value) == len(args) and all(map(matches, value, args))
    if origin is not None and isinstance(origin, type):
        kinds = (list, tuple) if origin in (list, tuple) else origin
        return isinstance(value, kinds) and _parts_match(value, origin, args)
    return not isinstance(hint, type) or isinstance(value, hint)


def _parts_match(value: Any, origin: type, args: tuple[Any, ...]) -> bool:
    if issubclass(origin, Mapping):
        return all(matches(k, args[0]) and matches(v, args[1]) for k, v in value.items())
    if issubclass(origin, (Sequence, Set)):
        return all(matches(each, args[0]) for each in value)
    return True  # of `type[…]` and `Callable[…]` the outer kind is what can be checked


def _require(holds: bool, kind: type, name: str, value: Any, what: str) -> None:
    if not holds:
        shown = f"{value!r:.60}" if is_plain(value) else kind_of(value)
        raise StorageError(f"{kind.__name__}.{name:.60} is {shown}: {what}")


def _text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
