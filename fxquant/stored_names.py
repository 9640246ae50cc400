"""The names by which saved files know classes and functions: fxquant's own, and modules' types.

    @stored_as("QuantizedConv2d")        →  "fxquant:QuantizedConv2d" in a file
    class QuantizedConv2d(…)

The decorator is the mark that a file may name what stands below it, and the only one. The name is
the file's own: whoever moves or renames the class leaves it, and saved models go on loading.

Module types of PyTorch and torchvision are known by module and qualified name
("torch.nn.modules.linear:Linear"). Looking one up imports modules inside of their packages alone.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_Marked = TypeVar("_Marked", bound=Callable[..., Any])
_values: dict[str, Any] = {}
_names: dict[int, str] = {}


def stored_as(name: str) -> Callable[[_Marked], _Marked]:
    """Mark a class that files may make objects of, or a function that graphs in files may call.

    Subclasses need marks of their own.

    Raises:
        ValueError: something else has that name.
    """

    def mark(marked: _Marked) -> _Marked:
        known = _values.get(name, marked)
        if _path(known) != _path(marked):  # the same path: its module ran twice
            raise ValueError(
                f"{marked.__qualname__} cannot be stored as {name!r}: that is the name of "
                f"{_path(known)}"
            )
        _values[name], _names[id(marked)] = marked, name
        return marked

    return mark


def _path(marked: Callable[..., Any]) -> str:
    return f"{marked.__module__}.{marked.__qualname__}"


def stored_name(value: object) -> str | None:
    """Return the name that a class or a function was marked with, None if it was not."""
    return _names.get(id(value))


def value_stored_as(name: str) -> Any:
    """Return the class or function of that name, None if there is none."""
    return _values.get(name)


def stored_names() -> list[str]:
    """Return all names, in alphabetical order."""
    return sorted(_values)


_MODULE_PACKAGES = (
    "torch.nn.modules", "torch.nn.utils.parametrize", "torch.nn.utils.parametrizations",
    "torchvision.models", "torchvision.ops", "torchvision.transforms",
)  # fmt: skip
_REFUSED_MODULES = ("torchvision.models._api", "torchvision.models.feature_extraction")


def module_type_named(name: str) -> Any:
    """Return what PyTorch or torchvision itself defines under "module:qualified name", or None.

    Raises nothing: of what another module imports, or outside of the packages of modules, it is
    None.
    """
    module, _, qualified_name = name.partition(":")
    if not is_inside(module, _MODULE_PACKAGES) or is_inside(module, _REFUSED_MODULES):
        return None
    try:
        importlib.import_module(module)
    except ImportError:
        return None
    found = loaded(name)
    defined = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    return found if defined == (module, qualified_name) else None


def loaded(name: str) -> Any:
    """Return what has that name in the modules that are loaded, or None."""
    module, _, qualified_name = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = inspect.getattr_static(found, part, None)
    return found


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    """Say whether a module is one of the packages, or in one."""
    return any(module == each or module.startswith(f"{each}.") for each in packages)
