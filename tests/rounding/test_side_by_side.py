"""Both graphs come by layer by layer: quantized inputs, float targets."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.passes import QuantizeWeights
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.subgraphs import find_subgraphs
from fxquant.streaming.value_store import ValueStore
from tests.helpers import Net, apply


def both(model: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return the model with weights of 3 bits, and as it was."""
    gm = fxquant.trace(model)
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=3)), gm)
    return gm, reference


def collected(gm: fx.GraphModule, reference: fx.GraphModule, x: Tensor) -> dict[str, Any]:
    batches = [(part,) for part in torch.split(x, 4)]
    subgraphs = find_subgraphs(gm)
    with ValueStore() as store, torch.no_grad():
        sides = LayersSideBySide(Lesson(reference, batches), gm, subgraphs, store)
        return {each.name: list(sides.rows(each)) for each in subgraphs}


def test_inputs_are_the_quantized_graphs_and_targets_the_float_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    gm, reference = both(model)
    x = torch.randn(8, 4)
    found = collected(gm, reference, x)
    inputs = {name: torch.cat([pair[0] for pair in pairs]) for name, pairs in found.items()}
    targets = {name: torch.cat([pair[1] for pair in pairs]) for name, pairs in found.items()}
    with torch.no_grad():
        assert torch.equal(inputs["0"], x)
        torch.testing.assert_close(inputs["2"], F.relu(gm.get_submodule("0")(x)))
        torch.testing.assert_close(targets["0"], F.relu(reference.get_submodule("0")(x)))
        torch.testing.assert_close(targets["2"], reference(x))


def test_a_call_whose_input_comes_too_late_gets_the_float_one() -> None:
    model = Net(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Linear(4, 4))
    gm, reference = both(model)
    x = torch.randn(4, 4)
    ((first, second),) = collected(gm, reference, x).values()
    with torch.no_grad():
        assert torch.equal(first[0], x)
        torch.testing.assert_close(second[0], F.relu(reference.get_submodule("a")(x)))
        torch.testing.assert_close(second[1], reference(x))
