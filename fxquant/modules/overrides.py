"""Modules that compute something else than their class does: by hooks, or a forward of their own.

    relu.register_forward_hook(lambda module, inputs, output: output * 2)
    relu.forward = lambda x: x * 2

Nothing that is known of the class holds for a call of such a module. It is left as it is.
"""

from __future__ import annotations

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
