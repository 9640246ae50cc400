"""ClampBeforePool swaps a max-pool and the clamp behind it, which computes the same."""

from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.graph.records import record
from fxquant.passes import ClampBeforePool
from tests.helpers import Net, apply, graph_text, outputs, whole

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(function: Any) -> nn.Module:
    parts = {"pool": nn.MaxPool2d(3, 2, 1), "relu": nn.ReLU(), "inplace": nn.ReLU(inplace=True)}
    return Net(function, conv=nn.Conv2d(3, 4, 3), tanh=nn.Hardtanh(-1, 0.5), **parts)


def test_a_relu_moves_to_the_layer() -> None:
    model = net(lambda m, x: m.relu(m.pool(F.max_pool2d(m.conv(x), 2))))
    gm = fxquant.trace(model)
    assert apply(ClampBeforePool(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d
        relu = self.relu(conv) # ReLU
        max_pool2d = F.max_pool2d(relu, 2)
        pool = self.pool(max_pool2d) # MaxPool2d
        return pool
    """)
    assert torch.equal(outputs(gm, X), outputs(model, X))
    assert not apply(ClampBeforePool(), gm)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.relu6(m.pool(m.conv(x))),
        lambda m, x: m.tanh(m.pool(m.conv(x))),
        lambda m, x: m.pool(m.conv(x)).clamp(-0.2, 0.3),
        lambda m, x: m.inplace(m.pool(m.conv(x))),
    ],
)
def test_other_clamps_do_too(function: Any) -> None:
    gm = fxquant.trace(net(function))
    expected = outputs(gm, X)
    assert apply(ClampBeforePool(), gm)
    assert "pool" in graph_text(gm).splitlines()[-2]
    assert torch.equal(outputs(gm, X), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (y := m.pool(m.conv(x))).relu() + y,  # the max-pool is read elsewhere
        lambda m, x: m.inplace(m.pool(y := m.conv(x))).sum() + y,  # what it would change is
        lambda m, x: m.inplace(m.pool(x)),
        lambda m, x: m.pool(m.conv(x)).clamp(min=m.conv.bias.sum()),  # by a tensor
        lambda m, x: m.relu(F.avg_pool2d(m.conv(x), 2)),
    ],
)
def test_what_would_change_something_stays(function: Any) -> None:
    assert not apply(ClampBeforePool(), fxquant.trace(net(function)))


@pytest.mark.parametrize(("target", "is_fused"), [("x86", False), ("executorch", True)])
def test_it_runs_for_targets_that_ask_for_quantized_results(target: str, is_fused: bool) -> None:
    model = net(lambda m, x: m.relu(m.pool(m.conv(x))))
    gm = whole(fxquant.prepare(model, Recipe.minmax(target=target)))
    (conv,) = gm.graph.find_nodes(op="call_module", target="conv")
    assert bool(record(conv).relu) == is_fused
