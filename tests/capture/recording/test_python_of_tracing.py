"""What tracing patches is as before when it ends."""

import torch
from torch import nn

import fxquant
from tests.helpers import Net


def test_lists_of_tensors_still_become_tensors() -> None:
    fxquant.trace(nn.ReLU())
    numbers = [torch.tensor(1), torch.tensor(2)]
    assert torch.equal(torch.tensor(numbers), torch.tensor([1, 2]))


def test_records_an_index_with_a_size_in_it() -> None:
    positions = torch.randn(8)
    net = Net(lambda m, x: x + m.positions[: x.shape[1]], positions=positions)
    gm = fxquant.trace(net, example_inputs=torch.zeros(2, 4))
    x = torch.randn(2, 6)
    assert torch.equal(gm(x), x + positions[:6])
