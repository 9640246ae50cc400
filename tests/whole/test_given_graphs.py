"""A graph that is given to prepare, behind passes of the caller's own, is taken as it is."""

from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import fxquant
from fxquant import CaptureError, PassError, Pipeline
from fxquant.passes import FoldBatchNorm, MarkFusedRelu
from tests.helpers import randomize_batchnorms

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, image: Any, scale: float = 1.0) -> Any:
        y = torch.relu(self.bn(self.conv(image))).mean((2, 3))
        return F.linear(y, self.weight) * scale


def given() -> fx.GraphModule:
    torch.manual_seed(0)
    model = Net().eval()
    randomize_batchnorms(model)
    gm = fx.symbolic_trace(model)
    for node in gm.graph.nodes:
        node.meta["mine"] = node.name
    return gm


def test_names_and_what_the_nodes_hold_stay() -> None:
    gm = given()
    prepared: Any = fxquant.prepare(gm, "minmax")
    names = {node.name for node in prepared.graph.nodes}
    assert names >= {"image", "scale", "conv", "relu", "mean", "mul"}
    known = {node.name: node.meta["mine"] for node in prepared.graph.nodes if "mine" in node.meta}
    lifted = {"linear_1": "linear"}  # now the call of a module, "linear"
    assert known == {name: name for name in known} | lifted
    assert known.keys() >= {"image", "scale", "conv", "relu", "mean", "mul"}
    assert "conv" in dict(prepared.named_modules())


def test_the_given_graph_is_left() -> None:
    gm = given()
    before, text = gm(X), fxquant.text(gm)
    fxquant.quantize(gm, [X])
    assert fxquant.text(gm) == text
    assert torch.equal(gm(X), before)


def test_what_own_passes_did_is_kept_and_not_done_again() -> None:
    gm, other = given(), given()
    Pipeline(FoldBatchNorm(), MarkFusedRelu())(gm)
    folded = fxquant.prepare(gm, "minmax", example_inputs=X)
    assert "conv = self.conv(observers_image) " in fxquant.text(folded)
    assert "Conv2d · folded: bn · fused: relu" in fxquant.text(folded)
    torch.testing.assert_close(folded(X), fxquant.prepare(other, "minmax")(X))


def test_functional_layers_become_modules() -> None:
    quantized = fxquant.quantize(given(), [X])
    kinds = {type(module).__name__ for module in quantized.modules()}
    assert {"QuantizedConv2d", "QuantizedLinear"} <= kinds


def test_arguments_keep_their_names_and_defaults() -> None:
    prepared = fxquant.prepare(given(), "minmax", example_inputs=X)
    torch.testing.assert_close(prepared(image=X, scale=2.0), 2 * prepared(X))


def test_graphs_of_aten_operators_are_refused_with_words() -> None:
    model = Net().eval()
    exported = torch.export.export(model, (X,))
    for graph in (exported.module(), torch.export.unflatten(exported), make_fx(model)(X)):
        with pytest.raises(CaptureError, match="a graph of ATen operators, without layers"):
            fxquant.prepare(graph)
    with pytest.raises(CaptureError, match="an ExportedProgram, a graph of ATen operators"):
        fxquant.prepare(exported)  # type: ignore[arg-type]


def test_a_prepared_graph_is_refused() -> None:
    with pytest.raises(PassError, match="the model is prepared already"):
        fxquant.prepare(fxquant.prepare(given()))
