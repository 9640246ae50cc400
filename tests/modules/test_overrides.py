"""A module with hooks, or a forward of its own, is not taken for what its class computes."""

from typing import Any

import torch
from torch import nn

from fxquant.modules.overrides import has_global_hooks, why_overridden


def test_says_what_overrides_the_class() -> None:
    modules: list[Any] = [nn.ReLU() for _ in range(5)]
    modules[1].register_forward_hook(lambda *_: None)
    modules[2].register_forward_pre_hook(lambda *_: None)
    modules[3].forward = torch.sigmoid
    modules[4].register_full_backward_hook(lambda *_: None)  # changes no result
    assert [why_overridden(module) for module in modules] == [
        None, "forward hooks", "forward hooks", "a forward of its own", None,
    ]  # fmt: skip


def test_finds_hooks_on_all_modules() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert has_global_hooks()
    finally:
        handle.remove()
    assert not has_global_hooks()
