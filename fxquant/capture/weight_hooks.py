"""Weights that a hook computes before each call: computed once, and the hook taken off.

Before:  Conv2d with weight_g, weight_v and a pre-hook      # torch.nn.utils.weight_norm
After:   Conv2d with weight = weight_g · weight_v / ‖weight_v‖

In eval mode the hook computes the same weight each time; so nothing changes. These are the older
forms of `torch.nn.utils.parametrizations`, and pruning.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def take_off_weight_hooks(model: nn.Module) -> None:
    """Compute the weights, in place, and remove the hooks."""
    for module, name, remove in _find(model):
        remove(module, name)


def _find(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return each weight that a hook computes: its module, its name, what takes the hook off."""
    found: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found.append((module, hook.name, remove_weight_norm))
            elif isinstance(hook, SpectralNorm):
                found.append((module, hook.name, remove_spectral_norm))
            elif isinstance(hook, prune.BasePruningMethod):
                found.append((module, hook._tensor_name, prune.remove))
    return found
