"""Copies of models, whatever their calls have kept."""

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.modules.copies import copy_module, detach_results

Pair = namedtuple("Pair", "h c")


class Keeps(nn.Module):
    """Keeps results everywhere, and goes on from one of them."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("state", torch.zeros(3))
        self.last: Any = None
        self.by_name: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.fc(x + self.state)
        self.last = Pair(self.state * 2, [self.state[0]])
        self.by_name["all"] = [*self.by_name.get("all", []), self.state]
        return self.state


def called(times: int = 1) -> Keeps:
    model = Keeps()
    for _ in range(times):
        model(torch.ones(3))
    return model


def test_a_copy_holds_values_without_their_gradients() -> None:
    model = called()
    copied = copy_module(model)
    results = (copied.state, copied.last.h, copied.last.c[0], copied.by_name["all"][0])
    assert not any(each.requires_grad for each in results)
    assert torch.equal(copied.state, model.state)
    assert torch.equal(copied.last.h, model.last.h)
    assert isinstance(copied.last, Pair)
    assert model.state.grad_fn is not None
    assert model.last.h.grad_fn is not None


def test_a_copy_keeps_what_a_memo_gives_and_what_is_no_result() -> None:
    model = called()
    state = torch.full((3,), 7.0)
    copied = copy_module(model, {id(model.state): state})
    assert copied.state is copied.by_name["all"][0] is state
    assert copied.fc.weight.requires_grad
    assert copied.fc.weight is not model.fc.weight


def test_a_second_backward_starts_from_what_the_first_call_kept() -> None:
    model = Keeps()
    for _ in range(3):
        model(torch.ones(3)).sum().backward()
        detach_results(model)
    before, own = model.state, called(3).state
    assert before.grad_fn is None
    assert isinstance(model.last, Pair)
    assert model.last.h.grad_fn is model.by_name["all"][-1].grad_fn is None
    assert own.shape == before.shape


def test_a_container_that_holds_itself_is_copied() -> None:
    model = called()
    model.last = [model.by_name]
    model.last.append(model.last)
    copied = copy_module(model)
    assert copied.last[1] is copied.last
