"""A block as a function, and whether its samples go through it one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe
from fxquant.rounding.blocks.find import find_blocks
from fxquant.rounding.blocks.forward import BlockForward
from tests.helpers import Net, whole

FIXED: dict[str, tuple[Callable[[Any, Any], Any], bool]] = {
    "a residual": (lambda m, x: m.b(torch.relu(m.a(x))) + x, True),
    "a state of one batch": (lambda m, x: m.b(torch.sigmoid(m.a(x) + m.state)) * x, False),
    "a state for each sample": (lambda m, x: m.b(torch.sigmoid(m.a(x) + m.state[:1])) * x, True),
    "numbers that are written down": (
        lambda m, x: m.b(torch.relu(m.a(x).reshape(4, 2, 4).reshape(4, 8))) + x,
        False,
    ),
    "samples mixed": (lambda m, x: m.b(m.a(x).softmax(0)) + x, False),
}


@pytest.mark.parametrize(("function", "expected"), FIXED.values(), ids=FIXED)
def test_a_block_of_one_batch_is_told_from_others(
    function: Callable[[Any, Any], Any], expected: bool
) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "state": torch.randn(4, 8)}
    model, x = Net(function, **parts), torch.randn(4, 8)
    gm = whole(fxquant.quantize(model, [x], Recipe.minmax()))
    (block,) = find_blocks(gm)
    forward = BlockForward(block, gm, fxquant.trace(model))
    assert forward.takes_any_number(block.paths[0], x) is expected


class Recurrent(nn.Module):
    """Three steps of a gated cell, whose first state is of four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(8, 16), nn.Linear(8, 16)
        self.register_buffer("first", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        state: Any = self.first
        for step in x.unbind(1):
            gate, new = (self.of_input(step) + self.of_state(state)).chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
            state = (1 - gate) * torch.tanh(new) + gate * state
        return state  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["adaround", "gram", "blocks"])
def test_a_recurrent_cell_with_a_state_of_one_batch_is_learned(method: str) -> None:
    torch.manual_seed(0)
    how = {"blocks": True} if method == "blocks" else {"method": method}
    recipe = Recipe.adaround(steps=20, samples=32, batch_size=16, **how)
    model, data = Recurrent(), [torch.randn(4, 3, 8) for _ in range(8)]
    quantized = fxquant.quantize(model, data, recipe, progress=False)
    errors = [each.rounding for each in fxquant.report(quantized).rows if each.rounding]
    assert len(errors) == 5  # calls; the first state is a constant
    assert all(each.error_learned < 0.01 for each in errors)
