"""Names for what a pass puts into a graph's module."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.graph.submodules import free_name
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("wanted", "free"),
    [
        ("new", "new"),
        ("fc", "fc_1"),
        ("to", "to_1"),
        ("fc.weight", "fc.weight_1"),
        ("fc.to", "fc.to_1"),
        ("made.fc", "made.fc"),
        ("made.to", "made.to_1"),
        ("none.made.half", "none.made.half_1"),
    ],
)
def test_a_free_name_is_of_no_attribute_nor_of_one_that_a_made_module_will_have(
    wanted: str, free: str
) -> None:
    model = Net(lambda m, x: m.fc(x), fc=nn.Linear(4, 4), none=None)
    assert free_name(fxquant.trace(model), wanted) == free


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to(torch.float32),
    "type": lambda x: x.type(torch.float32),
    "float": lambda x: x.half().float(),
    "half": lambda x: x.half(),
    "apply": lambda x: x.add(1).type_as(x),
}


@torch.no_grad()
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nodes_may_bear_the_names_of_methods(call: Callable[[Tensor], Tensor]) -> None:
    layers = {name: nn.Linear(4, 4) for name in ("first", "second")}
    inside = Net(lambda m, x: m.second(call(x).float() + m.first(call(x).float())), **layers)
    at_the_end = Net(lambda m, x: call(m.first(x)), first=nn.Linear(4, 4))
    recipe = Recipe.aciq(logits=TensorSpec())
    for model in (inside.eval(), at_the_end.eval()):
        converted = fxquant.quantize(model, [X], recipe)
        assert sqnr(model(X), converted(X)) > 30
        assert sqnr(model(X), fxquant.to_qdq(converted)(X)) > 30


def test_layers_whose_names_differ_in_a_dot_alone_keep_means_of_their_own() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b_c = nn.Linear(4, 4), nn.Linear(4, 4)

    model = Net(lambda m, x: m.a_b.c(m.a.b_c(x)), a=Inner(), a_b=Inner())
    prepared = fxquant.prepare(model, Recipe.aciq())
    assert list(prepared.input_means._modules) == ["a_b_c", "a_b_c_1"]  # type: ignore[union-attr]
