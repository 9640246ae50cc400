"""Decisions in Python are told apart by what of the inputs they depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxquant.deploy.tracing.decisions import PythonDecisions

CONSTANT = torch.tensor([1.0, 2.0])


def decisions(function: Callable[[Tensor], Any]) -> PythonDecisions:
    noted = PythonDecisions(1)

    class Traced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with noted:
                function(x)
            return x + 1

    jit: Any = torch.jit
    jit._get_trace_graph(Traced(), (torch.rand(4, 3),))
    return noted


VALUES: dict[str, Callable[[Tensor], Any]] = {
    "a branch": lambda x: 1 if x.sum() > 0 else 2,
    "a number": lambda x: float(x.max()),
    "item": lambda x: x[0, 0].item(),
    "a list": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x + 1),
    "the length of a mask's rows": lambda x: 1 if x[x[:, 0] > 0.5].shape[0] == 0 else 2,
    "the number of boxes": lambda x: bool(
        torchvision.ops.nms(torch.cat([x, x[:, :1] + 2], 1), x[:, 0], 0.5).numel() > 2
    ),
    "a loop over what is kept": lambda x: list(x[torch.where(x[:, 0] > 0)[0]]),
    "a tensor of numbers": lambda x: torch.tensor([x.max(), x.min()]),
}
SIZES: dict[str, tuple[Callable[[Tensor], Any], set[int | None]]] = {
    "a branch": (lambda x: 1 if x.shape[1] % 2 else 2, {1}),
    "a range": (lambda x: list(range(x.shape[0])), {0}),
    "from the end": (lambda x: int(x.size(-1)), {1}),
    "a loop over rows": (lambda x: list(x.relu()), {0}),
    "the length": (lambda x: len(x), {0}),
    "all": (lambda x: 1 if x.numel() > 3 else 2, {None}),
}
NOTHING: dict[str, Callable[[Tensor], Any]] = {
    "a constant": lambda x: 1 if CONSTANT.sum() > 0 else 2,
    "a rank": lambda x: x.dim() == 2,
    "sizes that stay tensors": lambda x: x.reshape(x.shape[1], -1),
    "an index": lambda x: x[:, : x.shape[1] - 1],
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("function", VALUES.values(), ids=VALUES)
def test_on_values(function: Callable[[Tensor], Any]) -> None:
    (place,) = set(decisions(function).on_values)
    assert place.startswith("test_decisions.py:")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("function", "axes"), SIZES.values(), ids=SIZES)
def test_on_sizes(function: Callable[[Tensor], Any], axes: set[int | None]) -> None:
    noted = decisions(function)
    assert (noted.on_values, noted.on_sizes) == ([], axes)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("function", NOTHING.values(), ids=NOTHING)
def test_on_nothing(function: Callable[[Tensor], Any]) -> None:
    noted = decisions(function)
    assert (noted.on_values, noted.on_sizes) == ([], set())
