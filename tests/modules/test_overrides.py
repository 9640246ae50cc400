"""A module with hooks, or a forward of its own, is not taken for what its class computes."""

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from fxquant.modules.overrides import has_global_hooks, rebind_overrides, why_overridden


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


def copied(model: nn.Module) -> Any:
    memo: dict[int, Any] = {}
    copied = copy.deepcopy(model, memo)
    rebind_overrides(copied.modules(), memo)
    return copied


def wrapped(forward: Any) -> Any:
    return lambda x: forward(x) * 2


def by_default(forward: Any) -> Any:
    return lambda x, forward=forward: forward(x) * 2


def as_method(forward: Any) -> Any:
    owner = forward.__closure__[0].cell_contents.__self__
    return MethodType(lambda self, x: forward(x) * 2, owner)


def recursive(forward: Any) -> Any:
    def call(x: Any, depth: int = 1) -> Any:
        return call(forward(x), depth - 1) if depth else x * 2

    return call


@pytest.mark.parametrize("wrap", [wrapped, by_default, as_method, recursive])
def test_a_wrapped_forward_of_a_copy_calls_the_copy(wrap: Any) -> None:
    model: Any = nn.Linear(2, 2)
    model.forward = wrap(wrapped(model.forward))
    other = copied(model)
    nn.init.zeros_(other.weight), nn.init.ones_(other.bias)
    assert torch.equal(other(torch.randn(1, 2)), torch.full((1, 2), 4.0))
    assert not torch.equal(model(torch.ones(1, 2)), torch.full((1, 2), 4.0))


def test_a_hook_of_a_copy_calls_the_copy() -> None:
    model: Any = nn.Sequential(nn.Identity(), nn.Dropout())
    model[0].register_forward_hook(lambda module, inputs, output: model[1](output))
    model[0].register_forward_pre_hook(lambda module, inputs: (model[1](inputs[0]),))
    x = torch.ones(100)
    assert torch.equal(copied(model.train()).eval()(x), x)


def test_what_holds_no_module_stays_the_same_function() -> None:
    calls: list[Any] = []
    model: Any = nn.ReLU()
    model.forward = lambda x: calls or x
    assert copied(model).forward is model.forward
