"""Calls of copies of a model leave it, its inputs and the random numbers as they are."""

from typing import Any

import torch
from torch import nn

from fxquant.calling.trial import detached_copy, outputs_of
from fxquant.capture.example import Call
from tests.helpers import Net

X = torch.ones(2, 4)


def test_neither_the_model_nor_what_it_is_given_changes() -> None:
    def count(m: Any, x: Any) -> Any:
        m.calls += 1
        return x.add_(m.calls)

    model = Net(count, calls=torch.zeros(1))
    first, second = outputs_of(model, [Call((X,)), Call((X,))])
    assert (first == 2).all()
    assert (second == 3).all()
    assert model.calls == 0
    assert (X == 1).all()


def test_random_numbers_are_those_of_the_seed_and_go_on_as_before() -> None:
    model = Net(lambda m, x: torch.rand_like(x))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = outputs_of(model, [Call((X,))]), outputs_of(model, [Call((X,))], seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(one[0], other[0])


def test_a_copy_has_no_gradient() -> None:
    y = nn.Linear(4, 2)(X)
    copied = detached_copy({"y": [y]})["y"][0]
    assert torch.equal(copied, y)
    assert not copied.requires_grad
