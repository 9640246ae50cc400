"""ExpandSilu writes SiLU as a product, which computes the same."""

from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.passes import ExpandSilu
from tests.helpers import Net, apply, graph_text, outputs

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "function",
    [lambda m, x: m.silu(m.fc(x)), lambda m, x: F.silu(m.fc(x)), lambda m, x: m.inplace(m.fc(x))],
)
def test_a_product_takes_its_place(function: Any) -> None:
    parts = {"silu": nn.SiLU(), "inplace": nn.SiLU(inplace=True), "fc": nn.Linear(4, 4)}
    model = Net(function, **parts)
    gm = fxquant.trace(model)
    assert apply(ExpandSilu(), gm)
    name = graph_text(gm).splitlines()[3].split()[0]
    assert graph_text(gm) == cleandoc(f"""
        x = input()
        fc = self.fc(x) # Linear
        sigmoid = torch.sigmoid(fc)
        {name} = operator.mul(fc, sigmoid)
        return {name}
    """)
    torch.testing.assert_close(outputs(gm, X), outputs(model, X))
    assert not apply(ExpandSilu(), gm)


def test_one_in_place_whose_input_is_read_later_stays() -> None:
    gm = fxquant.trace(Net(lambda m, x: (y := m.fc(x), F.silu(y, True))[1] + y, fc=nn.Linear(4, 4)))
    assert not apply(ExpandSilu(), gm)


@pytest.mark.parametrize(("target", "has"), [("x86", True), ("onnxruntime", False)])
def test_it_runs_for_targets_that_have_no_silu(target: str, has: bool) -> None:
    prepared = fxquant.prepare(
        nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2)), Recipe.minmax(target=target)
    )
    assert any(isinstance(module, nn.SiLU) for module in prepared.modules()) == has
