"""What every pass keeps to, over a table of models: it leaves all that other models hold alone."""

import copy
import logging
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import fxquant
from benchmarks.graphs.alone import passes_in_order, sibling
from fxquant import CalibrationError, Pass, PassError, Pipeline, Recipe, passes
from fxquant.int8.onednn import why_unavailable
from tests.helpers import Net, randomize_batchnorms, refusals

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Called as a whole, and in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


def wide_and_narrow(activation: Callable[[Tensor], Tensor] = torch.relu) -> nn.Module:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        first.weight *= torch.tensor([0.1, 1.0, 4.0, 30.0])[:, None, None, None]
    bn = nn.BatchNorm2d(4)
    net = Net(
        lambda m, x: m.second(activation(m.bn(m.first(x)))), first=first, bn=bn, second=second
    )
    with torch.no_grad():
        bn.bias.add_(5.0)
    return net


def wide_norm() -> nn.Module:
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        norm.weight[0] *= 100
    return norm


def two_names() -> nn.Module:
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    net.b = net.a
    return net


MODELS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ),
    "residual": lambda: Net(
        lambda m, x: m.last(
            F.relu6((y := torch.relu(x)) + m.bn2(m.conv2(torch.relu(m.bn1(m.conv1(y))))))
        ),
        conv1=nn.Conv2d(3, 3, 3, padding=1), bn1=nn.BatchNorm2d(3),
        conv2=nn.Conv2d(3, 3, 3, padding=1), bn2=nn.BatchNorm2d(3), last=nn.Conv2d(3, 2, 1),
    ),
    "a sum of activations": lambda: Net(
        lambda m, x: m.last(torch.relu(torch.sigmoid(x) + torch.relu(m.conv(x)))),
        conv=nn.Conv2d(3, 3, 3, padding=1), last=nn.Conv2d(3, 2, 1),
    ),
    "attention": lambda: Net(
        lambda m, x: m.out(F.scaled_dot_product_attention(m.a(x), m.b(x), m.c(x))),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), out=nn.Linear(8, 2),
    ),
    "SiLU": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1)),
    "a concatenation of large and small": lambda: Net(
        lambda m, x: m.last(torch.cat([y := m.conv(x), y * 50], 1)) + m.last(y.repeat(1, 2, 1, 1)),
        conv=nn.Conv2d(3, 4, 3), last=nn.Conv2d(8, 2, 1),
    ),
    "a ReLU behind a max-pool": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ),
    "two norms behind one layer": lambda: Net(
        lambda m, x: m.bn2(m.conv(m.bn1(m.conv(x)))),
        conv=nn.Conv2d(3, 3, 1), bn1=nn.BatchNorm2d(3), bn2=nn.BatchNorm2d(3),
    ),
    "norm in front": lambda: Net(
        lambda m, x: torch.cat([m.conv(m.bn(x)), m.other(x)], 1),
        bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3), other=nn.Conv2d(3, 2, 3),
    ),
    "functions": lambda: Net(
        lambda m, x: F.linear(F.conv2d(x, m.w, m.b).mean((2, 3)), m.v),
        w=nn.Parameter(torch.randn(4, 3, 3, 3)), b=nn.Parameter(torch.randn(4)),
        v=nn.Parameter(torch.randn(2, 4)),
    ),
    "wide and narrow channels": wide_and_narrow,
    "wide and narrow channels, clipped": lambda: wide_and_narrow(F.relu6),
    "a part called alone": lambda: Net(
        lambda m, x: m.block(x) + m.block.bn(m.block.conv(x)), block=Block()
    ),
    "two names": two_names,
    "a weight that is read": lambda: Net(
        lambda m, x: m.bn(m.conv(x)) * m.conv.weight.mean(),
        conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3),
    ),
    "computed weights": lambda: Net(
        lambda m, x: m.last(m.bn(m.conv(x))), conv=weight_norm(nn.Conv2d(3, 3, 1)),
        bn=nn.BatchNorm2d(3), last=nn.Conv2d(3, 2, 1),
    ),
    "products": lambda: Net(
        lambda m, x: F.conv2d(x, m.w / m.w.norm()).mean((2, 3)) @ m.v + m.fc.weight.t().mean(1),
        w=nn.Parameter(torch.randn(4, 3, 1, 1)), v=nn.Parameter(torch.randn(4, 2)),
        fc=nn.Linear(2, 3),
    ),
    "a norm with wide channels": lambda: Net(
        lambda m, x: m.fc(m.norm(x)), fc=nn.Linear(8, 4), norm=wide_norm(),
    ),
    "transposed": lambda: Net(
        lambda m, x: m.last(F.hardswish(m.bn(m.up(x)))),
        up=nn.ConvTranspose2d(3, 4, 2, stride=2), bn=nn.BatchNorm2d(4), last=nn.Conv2d(4, 2, 1),
    ),
}  # fmt: skip
AGAIN = {"ReconstructBlocks", "ReconstructRounding", "TuneBatchNorm"}
"""What learns goes on from where the first run came to."""


def made(name: str) -> nn.Module:
    """Return a model of the table in eval mode, with batch norms that do something."""
    model = MODELS[name]()
    if not isinstance(model, Net):
        randomize_batchnorms(model)
    return model.eval()


def contents(model: nn.Module) -> dict[str, Any]:
    """Return all that `model` holds: modules by identity, tensors by value."""
    modules = {name: id(module) for name, module in model.named_modules()}
    tensors = copy.deepcopy(model.state_dict())  # and what else is in it
    return {"modules": modules, "tensors": tensors, "y": computed(copy.deepcopy(model))}


def computed(model: nn.Module) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(IMAGES.clone())
    return y


def assert_as_before(model: nn.Module, before: dict[str, Any], where: str) -> None:
    now = contents(model)
    assert now["modules"] == before["modules"], where
    assert now["tensors"].keys() == before["tensors"].keys(), where
    for name, value in now["tensors"].items():
        same = torch.equal if isinstance(value, Tensor) else operator.eq
        assert same(value, before["tensors"][name]), f"{where}: {name}"
    assert torch.equal(now["y"], before["y"]), where


def in_order(gm: fx.GraphModule) -> Iterator[tuple[Pass, fx.GraphModule]]:
    """Yield all passes, each with a graph in a state that it starts from."""
    recipe = Recipe.adaround(weight_bits=4, activation_bits=7, bias_correction=True)
    return passes_in_order(gm, [(IMAGES,)], recipe, computed)


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_leaves_what_other_models_hold_as_it_was(name: str) -> None:
    model = made(name)
    before = contents(model)
    leaves = (Block,) if name == "a part called alone" else ()
    traced = fxquant.trace(model, leaf_modules=leaves).graph  # over the model's own modules:
    modified = set()
    for each, gm in in_order(fx.GraphModule(model, traced)):
        where = f"{type(each).__name__}, {name}"
        other = sibling(gm)
        other_before, code = contents(other), gm.code
        result = each(gm)
        assert result.graph_module is gm, where
        assert_as_before(other, other_before, where)
        gm.graph.lint()
        if result.modified:
            modified.add(type(each).__name__)
        else:
            assert gm.code == code, where
        if type(each).__name__ not in AGAIN:
            assert not each(gm).modified, where
        computed(copy.deepcopy(gm))
    assert_as_before(model, before, name)
    assert modified


def test_every_pass_takes_part_and_changes_one_of_the_models() -> None:
    listed = {name: getattr(passes, name) for name in passes.__all__}
    known = {
        name
        for name, each in listed.items()
        if isinstance(each, type) and issubclass(each, Pass) and each is not Pass
    }
    changed: set[str] = set()
    taken: set[str] = set()
    for name in MODELS:
        for each, gm in in_order(fxquant.trace(made(name), leaf_modules=(Block,))):
            taken.add(type(each).__name__)
            if each(gm).modified:
                changed.add(type(each).__name__)
    if why_unavailable() is None:
        assert taken == known
    assert taken - changed == set()


def test_symbolic_tracing_and_folding_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    randomize_batchnorms(model)
    before = contents(model)
    gm = fx.symbolic_trace(model)
    assert passes.FoldBatchNorm()(gm).modified
    assert_as_before(model, before, "FoldBatchNorm")
    torch.testing.assert_close(computed(gm), before["y"])


def test_a_layer_that_computes_its_weight_is_refused_by_name() -> None:
    gm = fx.symbolic_trace(made("computed weights"))
    assert not passes.FoldBatchNorm()(gm).modified
    assert refusals(gm)["bn"] == (
        "not folded: its ParametrizedConv2d computes its parameters (torch.nn.utils.parametrize)",
    )


@dataclass(frozen=True, eq=False)
class Broken(Pass):
    """A pass of a user that leaves a call of a module that is not there."""

    def run(self, gm: fx.GraphModule) -> bool:
        (output,) = gm.graph.find_nodes(op="output")
        with gm.graph.inserting_before(output):
            node = gm.graph.create_node("call_module", "missing", output.args)
        output.args = (node,)
        return True


@dataclass(frozen=True, eq=False)
class Failing(Pass):
    error: Exception

    def run(self, gm: fx.GraphModule) -> bool:
        raise self.error


@dataclass(frozen=True, eq=False)
class Replacing(Pass):
    def run(self, gm: fx.GraphModule) -> bool:
        return False

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        return PassResult(copy.deepcopy(graph_module), True)


def small() -> fx.GraphModule:
    return fxquant.trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


def test_a_dangling_target_is_found_where_it_was_left() -> None:
    with pytest.raises(RuntimeError, match=r"^Broken: .*missing"):
        Broken()(small())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PassError("no data"), "Failing: no data"),
        (CalibrationError("no data"), "Failing: no data"),
        (ValueError("no data", 3), "Failing: no data"),
        (ValueError(), "Failing: "),
    ],
)
def test_an_error_names_the_pass_once_and_keeps_its_type(error: Exception, message: str) -> None:
    with pytest.raises(type(error)) as caught:
        Pipeline(Pipeline(Failing(error)))(small())
    assert caught.value.args[0] == message
    with pytest.raises(type(error)) as caught:  # the same error once more
        Failing(error)(small())
    assert caught.value.args[0] == message


def test_a_pass_must_hand_back_the_module_that_it_got() -> None:
    with pytest.raises(PassError, match=r"^Replacing: it returned another GraphModule"):
        Replacing()(small())


def aten() -> fx.GraphModule:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    return torch.export.export(model, (IMAGES,)).module()


@pytest.mark.parametrize(
    ("each", "make", "words"),
    [
        (passes.FoldBatchNorm(), aten, "no modules and functions of torch, but ATen operators"),
        (passes.QuantizeWeights(), aten, "give a graph that fxquant.trace(model)"),
        (passes.ChooseRanges(), small, "no observers: run InsertObservers"),
        (passes.SplitQuantizers(), small, "no quantized layers or fake-quantizers"),
        (passes.ToQdq(), small, "run ChooseRanges and QuantizeWeights first"),
        (passes.LowerLayers(), small, "run ChooseRanges and QuantizeWeights first"),
        (passes.ClampIntegers(), small, "no quantized_decomposed operators: run ToQdq first"),
        (passes.ClampFloats(), small, "no quantized_decomposed operators: run ToQdq first"),
    ],
    ids=lambda value: str(value) if isinstance(value, Pass) else "",
)
def test_a_pass_that_understands_nothing_in_a_graph_says_so(
    each: Pass,
    make: Callable[[], fx.GraphModule],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "fxquant"):
        assert not each(make()).modified
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith(f"{type(each).__name__}: the graph has no ")
    assert words in said[0]


def test_a_pass_with_nothing_to_do_in_a_graph_it_understands_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gm = small()
    with caplog.at_level(logging.WARNING, "fxquant"):
        Pipeline(passes.FoldBatchNorm(), passes.AbsorbBatchNorm(), passes.DropIdentities())(gm)
    assert not caplog.records
    assert math.isfinite(gm(torch.ones(1, 3)).sum().item())
