"""FoldBatchNorm computes what the model computed, and says why where it does not fold."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import fxquant
from fxquant.graph.records import record
from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.passes import FoldBatchNorm, LiftFunctionals
from tests.helpers import Net, apply, graph_text, outputs, refusals, relative_error, whole

UNKNOWN_RANK = (
    "not folded: batch norm works on axis 1, a linear layer on the last; its output is of unknown "
    "rank (prepare with example_inputs)"
)
THREE_AXES = UNKNOWN_RANK.replace("of unknown rank (prepare with example_inputs)", "3-D")
HOOKED = "not folded: its {} has forward hooks, which may use its parameters"
BATCHNORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and what becomes of it, by node name."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 4, 6, 6)
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    shapes_known: bool = False


def in_a_row(x_axes: int, conv: Callable[[], nn.Module], **options: Any) -> Case:
    """Return the case of one convolution to 4 channels and the batch norm that fits behind it."""
    batchnorm = BATCHNORM[x_axes](4, **options)
    return Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=copy.deepcopy(batchnorm)),
        (2, 4, *[6] * x_axes),
        folded={"conv": ("bn",)},
    )


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def tied() -> Net:
    conv1, conv2 = conv(), conv()
    conv2.weight, conv2.bias = conv1.weight, conv1.bias
    return Net(
        lambda m, x: m.bn(m.conv1(x)) + m.conv2(x), conv1=conv1, conv2=conv2, bn=nn.BatchNorm2d(4)
    )


def hooked(part: str) -> Net:
    model = Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    model.get_submodule(part).register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def linear(function: Callable[[Any, Any], Any]) -> Net:
    return Net(function, fc=nn.Linear(4, 4), bn=nn.BatchNorm1d(4))


def functional(**options: Any) -> Net:
    return Net(
        lambda m, x: F.batch_norm(m.conv(x), m.mean, m.var, m.weight, m.bias, **options),
        conv=conv(),
        mean=torch.randn(4),
        var=torch.rand(4) + 0.5,
        weight=nn.Parameter(torch.rand(4) + 0.5),
        bias=nn.Parameter(torch.randn(4)),
    )


CASES = {
    "conv also feeds add": Case(
        lambda: Net(lambda m, x: m.bn(c := m.conv(x)) + c, conv=conv(), bn=nn.BatchNorm2d(4)),
        refused={"bn": "not folded: conv also feeds add"},
    ),
    "conv also feeds another batch norm": Case(
        lambda: Net(
            lambda m, x: m.bn1(c := m.conv(x)) + m.bn2(c),
            conv=conv(),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        ),
        refused={
            "bn1": "not folded: conv also feeds bn2",
            "bn2": "not folded: conv also feeds bn1",
        },
    ),
    "shared conv, two batch norms": Case(
        lambda: Net(
            lambda m, x: m.bn1(m.conv(x)) + m.bn2(m.conv(-x)),
            conv=conv(),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        ),
        folded={"conv": ("bn1",), "conv_1": ("bn2",)},
    ),
    "shared conv without bias, shared batch norm": Case(
        lambda: Net(
            lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(-x)),
            conv=nn.Conv2d(4, 4, 3, bias=False),
            bn=nn.BatchNorm2d(4),
        ),
        folded={"conv": ("bn",), "conv_1": ("bn",)},
    ),
    "shared conv, batch norm behind one call": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)) + m.conv(-x), conv=conv(), bn=nn.BatchNorm2d(4)),
        folded={"conv": ("bn",)},
    ),
    "two convs, shared batch norm": Case(
        lambda: Net(
            lambda m, x: m.bn(m.conv1(x)) + m.bn(m.conv2(x)),
            conv1=conv(),
            conv2=conv(),
            bn=nn.BatchNorm2d(4),
        ),
        folded={"conv1": ("bn",), "conv2": ("bn",)},
    ),
    "shared batch norm, one call without conv": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)) + m.bn(x), conv=conv(), bn=nn.BatchNorm2d(4)),
        folded={"conv": ("bn",)},
    ),
    "parameters tied to a conv without batch norm": Case(tied, folded={"conv1": ("bn",)}),
    "linear, 3-D, rank unknown": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x))), (2, 4, 4), refused={"bn": UNKNOWN_RANK}
    ),
    "linear, 3-D": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x))),
        (2, 4, 4),
        refused={"bn": THREE_AXES},
        shapes_known=True,
    ),
    "linear, 2-D, rank unknown": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x))), (2, 4), refused={"bn": UNKNOWN_RANK}
    ),
    "linear, 2-D": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x))), (2, 4), {"fc": ("bn",)}, shapes_known=True
    ),
    "linear, 2-D behind flatten": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(torch.flatten(x, 1)))), (2, 4, 1, 1), {"fc": ("bn",)}
    ),
    "linear, 2-D behind view and ReLU": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x.view(x.size(0), -1).relu()))),
        (2, 2, 2),
        {"fc": ("bn",)},
    ),
    "linear, 2-D behind nn.Flatten and reshape": Case(
        lambda: Net(
            lambda m, x: m.bn(m.fc(m.flatten(x))) + m.bn(m.fc(x.reshape((x.size(0), -1)))),
            flatten=nn.Flatten(),
            fc=nn.Linear(4, 4),
            bn=nn.BatchNorm1d(4),
        ),
        (2, 2, 2),
        {"fc": ("bn",), "fc_1": ("bn",)},
    ),
    "linear, not flattened to rows": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(torch.flatten(x, 2)))),
        (2, 4, 2, 2),
        refused={"bn": UNKNOWN_RANK},
    ),
    "linear, 3-D, flattened to rows": Case(
        lambda: linear(lambda m, x: m.bn((y := m.fc(x)).flatten(0, 1)).reshape_as(y)),
        (2, 3, 4),
        {"fc": ("bn",)},
        shapes_known=True,
    ),
    "linear, 3-D, transposed": Case(
        lambda: linear(lambda m, x: m.bn(m.fc(x).transpose(-2, -1)).permute(0, 2, 1)),
        (2, 3, 4),
        {"fc": ("bn",)},
        shapes_known=True,
    ),
    "linear, 4-D, permuted": Case(
        lambda: Net(
            lambda m, x: m.bn(m.fc(x).permute(0, 3, 1, 2)), fc=nn.Linear(4, 4), bn=nn.BatchNorm2d(4)
        ),
        (2, 3, 5, 4),
        {"fc": ("bn",)},
        shapes_known=True,
    ),
    "linear, permuted to another axis": Case(
        lambda: Net(
            lambda m, x: m.bn(m.fc(x).permute(0, 2, 3, 1)), fc=nn.Linear(4, 4), bn=nn.BatchNorm2d(4)
        ),
        (2, 3, 4, 4),
        refused={
            "bn": "not folded: batch norm works on axis 2, a linear layer on the last; its output "
            "is 4-D"
        },
        shapes_known=True,
    ),
    "linear, transposed, and read before": Case(
        lambda: linear(lambda m, x: m.bn((y := m.fc(x)).transpose(1, 2)).transpose(1, 2) + y),
        (2, 3, 4),
        refused={"bn": "not folded: fc also feeds add"},
        shapes_known=True,
    ),
    "Conv2d, flattened": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x).flatten(2)), conv=conv(), bn=nn.BatchNorm1d(4)),
        folded={"conv": ("bn",)},
    ),
    "Conv2d, transposed": Case(
        lambda: Net(
            lambda m, x: m.bn(m.conv(x).transpose(1, 2)), conv=conv(), bn=nn.BatchNorm2d(6)
        ),
        refused={
            "bn": "not folded: batch norm works on axis 2, a convolution on axis 1; its output is "
            "of unknown rank (prepare with example_inputs)"
        },
    ),
    "shapes and types are asked for": Case(
        lambda: Net(
            lambda m, x: (
                m.bn(y := m.conv(x)).reshape(y.shape[0], y.shape[1], -1).to(y.dtype)
                * torch.ones_like(y).sum()
            ),
            conv=conv(),
            bn=nn.BatchNorm2d(4),
        ),
        folded={"conv": ("bn",)},
    ),
    "Conv1d": in_a_row(1, lambda: nn.Conv1d(4, 4, 3, stride=2)),
    "Conv2d": in_a_row(2, lambda: nn.Conv2d(4, 4, 3, dilation=2, padding="same")),
    "Conv3d": in_a_row(3, lambda: nn.Conv3d(4, 4, 3)),
    "Conv2d, no bias": in_a_row(2, lambda: nn.Conv2d(4, 4, 3, bias=False)),
    "Conv2d, grouped": in_a_row(2, lambda: nn.Conv2d(4, 4, 3, groups=2)),
    "Conv2d, depthwise": in_a_row(2, lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False)),
    "Conv2d, reflected padding": in_a_row(
        2, lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    ),
    "ConvTranspose1d": in_a_row(1, lambda: nn.ConvTranspose1d(4, 4, 3, stride=2)),
    "ConvTranspose2d": in_a_row(2, lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)),
    "ConvTranspose3d": in_a_row(3, lambda: nn.ConvTranspose3d(4, 4, 3, bias=False)),
    "ConvTranspose1d, grouped": in_a_row(1, lambda: nn.ConvTranspose1d(4, 4, 3, groups=2)),
    "ConvTranspose2d, grouped": in_a_row(
        2, lambda: nn.ConvTranspose2d(4, 4, 3, groups=2, output_padding=1, stride=2)
    ),
    "ConvTranspose3d, grouped": in_a_row(
        3, lambda: nn.ConvTranspose3d(4, 4, 3, groups=2, bias=False)
    ),
    "ConvTranspose2d, depthwise": in_a_row(2, lambda: nn.ConvTranspose2d(4, 4, 3, groups=4)),
    "more channels out than in, grouped": Case(
        lambda: Net(
            lambda m, x: m.bn(m.conv(x)),
            conv=nn.ConvTranspose2d(4, 6, 3, groups=2),
            bn=nn.BatchNorm2d(6),
        ),
        folded={"conv": ("bn",)},
    ),
    "a large eps": in_a_row(2, conv, eps=0.3),
    "not affine": in_a_row(2, conv, affine=False),
    "frozen": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=FrozenBatchNorm2d(4)),
        folded={"conv": ("bn",)},
    ),
    "synchronized": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.SyncBatchNorm(4)),
        folded={"conv": ("bn",)},
    ),
    "functional": Case(functional, folded={"conv": ("batch_norm",)}),
    "functional, its eps": Case(lambda: functional(eps=0.3), folded={"conv": ("batch_norm",)}),
    "no running statistics": Case(
        lambda: Net(
            lambda m, x: m.bn(m.conv(x)),
            conv=conv(),
            bn=nn.BatchNorm2d(4, track_running_stats=False),
        ),
        refused={
            "bn": "not folded: it has no running statistics: it normalizes by each batch's own"
        },
    ),
    "two batch norms in a row": Case(
        lambda: Net(
            lambda m, x: m.bn2(m.bn1(m.conv(x))),
            conv=conv(),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        ),
        folded={"conv": ("bn1", "bn2")},
    ),
    "no batch norm": Case(lambda: Net(lambda m, x: m.conv(x), conv=conv())),
    "batch norm behind a ReLU": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x).relu()), conv=conv(), bn=nn.BatchNorm2d(4))
    ),
    "hook on the conv": Case(lambda: hooked("conv"), refused={"bn": HOOKED.format("Conv2d")}),
    "hook on the batch norm": Case(
        lambda: hooked("bn"), refused={"bn": HOOKED.format("BatchNorm2d")}
    ),
    "Conv1d without a batch": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv1d(4, 4, 3), bn=nn.BatchNorm1d(4)),
        (4, 6),
        refused={
            "bn": "not folded: its output is 2-D, without a batch: batch norm would take positions "
            "for channels"
        },
        shapes_known=True,
    ),
    "Conv1d without a batch, rank unknown": Case(
        lambda: Net(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv1d(4, 4, 3), bn=nn.BatchNorm1d(8)),
        (4, 10),
        refused={"bn": "not folded: 4 output channels, but a batch norm over 8"},
    ),
}


def fold(case: Case, x: torch.Tensor) -> tuple[nn.Module, fx.GraphModule]:
    """Return the case's model in `x`'s dtype, and its graph after the pass."""
    model = case.model().to(x.dtype)
    gm = fxquant.trace(model)
    apply(LiftFunctionals(), gm)
    if case.shapes_known:
        ShapeProp(gm).propagate(x)
    assert apply(FoldBatchNorm(), gm) == bool(case.folded)
    return model, gm


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_folds_or_refuses_and_computes_the_same(case: Case) -> None:
    x = torch.randn(case.shape)
    model, gm = fold(case, x)
    known = {each.name: record(each).folded for each in gm.graph.nodes}
    assert {name: folded for name, folded in known.items() if folded} == case.folded
    assert refusals(gm) == {name: (reason,) for name, reason in case.refused.items()}
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_second_run_changes_nothing(case: Case) -> None:
    _, gm = fold(case, torch.randn(case.shape))
    before = graph_text(gm)
    assert not apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == before


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d, grouped", "linear, 2-D", "frozen"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
    ids=str,
)
def test_keeps_the_dtype(name: str, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(CASES[name].shape, dtype=dtype)
    model, gm = fold(CASES[name], x)
    assert {parameter.dtype for parameter in gm.parameters()} == {dtype}
    assert relative_error(outputs(gm, x), outputs(model, x)) < tolerance


def test_folds_and_deletes_the_batchnorm() -> None:
    gm = fxquant.trace(CASES["Conv2d"].model())
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d
        bn = self.bn(conv) # BatchNorm2d
        return bn
    """)
    apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d · folded: bn
        return conv
    """)
    assert set(gm.state_dict()) == {"conv.weight", "conv.bias"}


def test_keeps_batchnorm_when_conv_also_feeds_add() -> None:
    gm = fxquant.trace(CASES["conv also feeds add"].model())
    apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d
        bn = self.bn(conv) # BatchNorm2d · refused: not folded: conv also feeds add
        add = operator.add(bn, conv)
        return add
    """)


def test_gives_each_batchnorm_behind_a_shared_conv_its_own_copy() -> None:
    gm = fxquant.trace(CASES["shared conv, two batch norms"].model())
    apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv_1(x) # Conv2d · folded: bn1
        neg = operator.neg(x)
        conv_1 = self.conv(neg) # Conv2d · folded: bn2
        add = operator.add(conv, conv_1)
        return add
    """)
    assert [record(each).origin for each in gm.graph.find_nodes(op="call_module")] == ["conv", None]


def test_folds_a_shared_conv_and_a_shared_batchnorm_once() -> None:
    gm = fxquant.trace(CASES["shared conv without bias, shared batch norm"].model())
    apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d · folded: bn
        neg = operator.neg(x)
        conv_1 = self.conv(neg) # Conv2d · folded: bn
        add = operator.add(conv, conv_1)
        return add
    """)


def test_leaves_the_shared_conv_to_the_call_without_batchnorm() -> None:
    model = CASES["shared conv, batch norm behind one call"].model()
    gm = fxquant.trace(model)
    apply(FoldBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv_1(x) # Conv2d · folded: bn
        neg = operator.neg(x)
        conv_1 = self.conv(neg) # Conv2d
        add = operator.add(conv, conv_1)
        return add
    """)
    assert torch.equal(gm.get_parameter("conv.weight"), model.get_parameter("conv.weight"))


def test_leaves_parameters_tied_to_another_conv_alone() -> None:
    model = tied()
    gm = fxquant.trace(model)
    apply(FoldBatchNorm(), gm)
    assert torch.equal(gm.get_parameter("conv2.weight"), model.get_parameter("conv2.weight"))
    assert not torch.equal(gm.get_parameter("conv1.weight"), gm.get_parameter("conv2.weight"))


def test_keeps_batchnorm_in_training_mode() -> None:
    gm = fxquant.trace(CASES["Conv2d"].model())
    gm.get_submodule("bn").train()
    x = torch.randn(2, 4, 6, 6)
    expected = outputs(gm, x)
    assert not apply(FoldBatchNorm(), gm)
    assert refusals(gm) == {
        "bn": ("not folded: it is in training mode: it normalizes by each batch's own statistics",)
    }
    assert torch.equal(outputs(gm, x), expected)


def test_keeps_a_batchnorm_subclass_with_a_forward_of_its_own() -> None:
    class BatchNormRelu(nn.BatchNorm2d):  # as timm's BatchNormAct2d
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    model = Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=BatchNormRelu(4))
    gm = fxquant.trace(model, leaf_modules=(BatchNormRelu,))
    x = torch.randn(2, 4, 6, 6)
    assert not apply(FoldBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


def test_computes_the_same_when_the_graph_also_reads_the_weight() -> None:
    model = Net(
        lambda m, x: F.conv_transpose2d(m.bn(m.conv(x)), m.conv.weight * 2),
        conv=conv(),
        bn=nn.BatchNorm2d(4),
    )
    gm = fxquant.trace(model)
    x = torch.randn(2, 4, 6, 6)
    apply(FoldBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


def test_computes_the_same_when_one_conv_has_two_names() -> None:
    model = Net(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    gm = fxquant.trace(model)
    gm.add_submodule("same", gm.get_submodule("conv"))
    (conv_node, _) = gm.graph.find_nodes(op="call_module")
    (output,) = gm.graph.find_nodes(op="output")
    with gm.graph.inserting_before(output):
        same = gm.graph.call_module("same", conv_node.args)
        output.args = (gm.graph.call_function(torch.add, (output.args[0], same)),)
    gm.recompile()
    x = torch.randn(2, 4, 6, 6)
    expected = outputs(gm, x)
    apply(FoldBatchNorm(), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5


def test_keeps_batchnorm_when_broadcasting_makes_linear_3d() -> None:
    model = Net(
        lambda m, x: m.bn(m.fc(torch.flatten(x, 1) + m.table)),
        table=nn.Parameter(torch.randn(3, 4, 4)),
        fc=nn.Linear(4, 4),
        bn=nn.BatchNorm1d(4),
    )
    gm = fxquant.trace(model)
    x = torch.randn(4, 4)
    assert not apply(FoldBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


def test_folds_linear_when_example_inputs_tell_the_rank() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    prepared = fxquant.prepare(model, "minmax", example_inputs=torch.randn(2, 4))
    assert not any(is_batchnorm_module(module) for module in prepared.modules())
    prepared = fxquant.prepare(model, "minmax", example_inputs=torch.randn(2, 4, 4))
    assert refusals(whole(prepared)) == {"_1": (THREE_AXES,)}


@pytest.mark.parametrize(("shape", "is_folded"), [((8, 4), True), ((8, 4, 4), False)])
def test_convert_folds_linear_when_calibration_told_the_rank(
    shape: tuple[int, ...], is_folded: bool
) -> None:
    model = linear(lambda m, x: m.bn(m.fc(x)))
    prepared = fxquant.prepare(model, "minmax")
    assert refusals(whole(prepared)) == {"bn": (UNKNOWN_RANK,)}
    x = torch.randn(shape)
    quantized = fxquant.convert(fxquant.calibrate(prepared, [x], progress=False))
    assert any(is_batchnorm_module(module) for module in quantized.modules()) != is_folded
    assert relative_error(outputs(quantized, x), outputs(model, x)) < 0.02  # 8 bits


def test_convert_tells_ranks_apart_where_tensors_share_an_observer() -> None:
    model = Net(  # x, 3-D, and the result of first, 2-D, are concatenated
        lambda m, x: m.head(torch.cat([x.flatten(1), m.first(x[:, 0])], 1)) + m.bn(m.fc(x)).sum(),
        first=nn.Linear(4, 4),
        fc=nn.Linear(4, 4),
        bn=nn.BatchNorm1d(4),
        head=nn.Linear(20, 4),
    )
    x = torch.randn(8, 4, 4)
    prepared = fxquant.calibrate(fxquant.prepare(model, "minmax"), [x], progress=False)
    quantized = fxquant.convert(prepared)
    assert relative_error(outputs(quantized, x), outputs(model, x)) < 0.02
    assert isinstance(quantized.get_submodule("bn"), nn.BatchNorm1d)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["Conv2d", "shared conv, two batch norms", "functional"])
def test_prepare_leaves_the_callers_model_as_it_was(name: str, training: bool) -> None:
    model = CASES[name].model().train(training)
    before = copy.deepcopy(model.state_dict())
    fxquant.prepare(model, example_inputs=torch.randn(CASES[name].shape))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {module.training for module in model.modules()} == {training}
