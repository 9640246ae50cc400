"""Modules that compute something else than their class does: by hooks, or a forward of their own.

    relu.register_forward_hook(lambda module, inputs, output: output * 2)
    relu.forward = lambda x: x * 2

Nothing that is known of the class holds for a call of such a module. It is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_modules


def why_overridden(module: nn.Module) -> str | None:
    """Return why a call of `module` may compute something else than its class, or None.

    >>> relu = nn.ReLU()
    >>> relu.forward = lambda x: x * 2
    >>> why_overridden(relu)
    'a forward of its own'
    """
    if module._forward_hooks or module._forward_pre_hooks:
        return "forward hooks"
    return "a forward of its own" if "forward" in vars(module) else None


def has_global_hooks() -> bool:
    """Say whether there are hooks that run with every call of every module."""
    registered = (torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks)
    return any(registered)


def rebind_overrides(modules: Iterable[nn.Module], copies: Mapping[int, Any]) -> None:
    """Let the hooks and the `forward`s of copied modules call copies, not what they were made for.

        forward = model.forward
        model.forward = lambda x: forward(x) * 2     # of a copy: still that of `model`

    Args:
        modules: the copies, changed in place.
        copies: of modules, by the ids of what they are copies of.
    """
    for module in modules:
        if "forward" in vars(module):
            vars(module)["forward"] = _rebound(vars(module)["forward"], copies)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.update({number: _rebound(hook, copies) for number, hook in hooks.items()})


def _rebound(value: Any, copies: Mapping[int, Any], inside_of: tuple[Any, ...] = ()) -> Any:
    """Return a module's copy, its copy's method, or a function that closes over such.

    Anything else, and a function that calls itself, comes back as it is.
    """
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if any(value is each for each in inside_of):
        return value
    inside_of = (*inside_of, value)
    if isinstance(value, MethodType):
        parts = (value.__func__, value.__self__)
        function, owner = (_rebound(each, copies, inside_of) for each in parts)
        return value if (function, owner) == parts else MethodType(function, owner)
    if not isinstance(value, FunctionType):
        return value
    held = [*map(_contents, value.__closure__ or ()), *(value.__defaults__ or ())]
    new = [_rebound(each, copies, inside_of) for each in held]
    if all(one is other for one, other in zip(held, new, strict=True)):
        return value
    cells = tuple(
        cell if one is other else CellType(other)
        for cell, one, other in zip(value.__closure__ or (), held, new, strict=False)
    )
    defaults = tuple(new[len(cells) :])
    made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
    made.__kwdefaults__ = value.__kwdefaults__
    vars(made).update(vars(value))
    return made


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None
