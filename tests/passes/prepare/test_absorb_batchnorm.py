"""AbsorbBatchNorm folds forward where that is exact, and says why where it is not."""

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
from fxquant.passes import AbsorbBatchNorm, LiftFunctionals
from tests.helpers import Net, apply, graph_text, outputs, refusals, relative_error

PADS = "not folded forward: conv: it pads with zeros, and the shift is not zero"
LEAVES_OUT_TAPS = (
    "not folded forward: conv: a transposed convolution leaves out taps at the border, and the "
    "shift is not zero"
)
AXES = (
    "not folded forward: fc: batch norm works on axis 1, a linear layer on the last; its input is "
)


@dataclass(frozen=True)
class Case:
    """A model, the shape of its input, and what becomes of it, by node name."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 4, 6, 6)
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    shapes_known: bool = False


def before(
    layer: Callable[[], nn.Module], reason: str | None = None, *, shift: bool = True
) -> Case:
    """Return the case of a batch norm and one convolution behind it."""

    def make() -> Net:
        model = Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm2d(4), conv=layer())
        if not shift:
            nn.init.zeros_(model.get_parameter("bn.bias"))
            nn.init.zeros_(model.get_buffer("bn.running_mean"))
        return model

    if reason is not None:
        return Case(make, refused={"bn": reason})
    return Case(make, folded={"conv": ("bn",)})


def padded(mode: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode)


def linear(function: Callable[[Any, Any], Any]) -> Net:
    return Net(function, bn=nn.BatchNorm1d(4), fc=nn.Linear(4, 3))


def hooked(part: str) -> Net:
    model = Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 3, 3))
    model.get_submodule(part).register_forward_hook(lambda module, inputs, output: output * 2)
    return model


CASES = {
    "no padding": before(lambda: nn.Conv2d(4, 3, 3)),
    "no padding, no bias": before(lambda: nn.Conv2d(4, 3, 3, bias=False)),
    "strided": before(lambda: nn.Conv2d(4, 3, 3, stride=2)),
    "grouped": before(lambda: nn.Conv2d(4, 6, 3, groups=2)),
    "depthwise": before(lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False)),
    "valid": before(lambda: nn.Conv2d(4, 3, 3, padding="valid")),
    "zeros": before(padded("zeros"), PADS),
    "zeros, no shift": before(padded("zeros"), shift=False),
    "zeros on one side": before(lambda: nn.Conv2d(4, 3, 3, padding=(0, 1)), PADS),
    "reflect": before(padded("reflect")),
    "circular": before(padded("circular")),
    "replicate": before(padded("replicate")),
    "same": before(lambda: nn.Conv2d(4, 3, 3, padding="same"), PADS),
    "same, circular": before(lambda: nn.Conv2d(4, 3, 3, padding="same", padding_mode="circular")),
    "same, 1x1": before(lambda: nn.Conv2d(4, 3, 1, padding="same")),
    "transposed": before(lambda: nn.ConvTranspose2d(4, 3, 3), LEAVES_OUT_TAPS),
    "transposed, no shift": before(
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), shift=False
    ),
    "two convs": Case(
        lambda: Net(
            lambda m, x: m.conv1(y := m.bn(x)) + m.conv2(y),
            bn=nn.BatchNorm2d(4),
            conv1=nn.Conv2d(4, 3, 3),
            conv2=nn.Conv2d(4, 3, 3, bias=False),
        ),
        folded={"conv1": ("bn",), "conv2": ("bn",)},
    ),
    "two convs, one pads": Case(
        lambda: Net(
            lambda m, x: m.conv1(y := m.bn(x)) + m.conv2(y),
            bn=nn.BatchNorm2d(4),
            conv1=nn.Conv2d(4, 3, 1),
            conv2=nn.Conv2d(4, 3, 3, padding=1),
        ),
        refused={"bn": PADS.replace("conv:", "conv2:")},
    ),
    "also feeds a ReLU": Case(
        lambda: Net(
            lambda m, x: m.conv(y := m.bn(x)) + y.relu(),
            bn=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 4, 1),
        ),
        refused={"bn": "not folded forward: it also feeds relu"},
    ),
    "one conv twice behind one batch norm": Case(
        lambda: Net(
            lambda m, x: m.conv(y := m.bn(x)) + m.conv(y),
            bn=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 4, 3),
        ),
        folded={"conv": ("bn",), "conv_1": ("bn",)},
    ),
    "shared conv, one call without batch norm": Case(
        lambda: Net(
            lambda m, x: m.conv(m.bn(x)) + m.conv(x), bn=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 4, 3)
        ),
        folded={"conv": ("bn",)},
    ),
    "shared conv, two batch norms": Case(
        lambda: Net(
            lambda m, x: m.conv(m.bn1(x)) + m.conv(m.bn2(x)),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 4, 3),
        ),
        folded={"conv": ("bn1",), "conv_1": ("bn2",)},
    ),
    "shared batch norm": Case(
        lambda: Net(
            lambda m, x: m.conv1(m.bn(x)) + m.conv2(m.bn(-x)),
            bn=nn.BatchNorm2d(4),
            conv1=nn.Conv2d(4, 4, 3),
            conv2=nn.Conv2d(4, 4, 3),
        ),
        folded={"conv1": ("bn",), "conv2": ("bn",)},
    ),
    "two batch norms in a row": Case(
        lambda: Net(
            lambda m, x: m.conv(m.bn2(m.bn1(x))),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 4, 3),
        ),
        folded={"conv": ("bn2", "bn1")},
    ),
    "no layer behind": Case(
        lambda: Net(lambda m, x: m.bn(x).relu(), bn=nn.BatchNorm2d(4)),
        refused={"bn": "not folded: between x and relu no layer is next to it"},
    ),
    "what asks for its shape and type": Case(
        lambda: Net(
            lambda m, x: m.conv(y := m.bn(x)).reshape(y.shape[0], -1).to(y.dtype),
            bn=nn.BatchNorm2d(4),
            conv=nn.Conv2d(4, 3, 3),
        ),
        folded={"conv": ("bn",)},
    ),
    "frozen": Case(
        lambda: Net(lambda m, x: m.conv(m.bn(x)), bn=FrozenBatchNorm2d(4), conv=nn.Conv2d(4, 3, 3)),
        folded={"conv": ("bn",)},
    ),
    "functional": Case(
        lambda: Net(
            lambda m, x: m.conv(F.batch_norm(x, m.mean, m.var)),
            mean=torch.randn(4),
            var=torch.rand(4) + 0.5,
            conv=nn.Conv2d(4, 3, 3),
        ),
        folded={"conv": ("batch_norm",)},
    ),
    "no running statistics": Case(
        lambda: Net(
            lambda m, x: m.conv(m.bn(x)),
            bn=nn.BatchNorm2d(4, track_running_stats=False),
            conv=nn.Conv2d(4, 3, 3),
        ),
        refused={
            "bn": "not folded forward: it has no running statistics: it normalizes by each batch's "
            "own"
        },
    ),
    "hook on the conv": Case(
        lambda: hooked("conv"),
        refused={
            "bn": "not folded forward: conv: its Conv2d has forward hooks, which may use its "
            "parameters"
        },
    ),
    "hook on the batch norm": Case(
        lambda: hooked("bn"),
        refused={
            "bn": "not folded forward: its BatchNorm2d has forward hooks, which may use its "
            "parameters"
        },
    ),
    "linear, rank unknown": Case(
        lambda: linear(lambda m, x: m.fc(m.bn(x))),
        (2, 4),
        refused={"bn": AXES + "of unknown rank (prepare with example_inputs)"},
    ),
    "linear, 3-D": Case(
        lambda: linear(lambda m, x: m.fc(m.bn(x))),
        (2, 4, 4),
        refused={"bn": AXES + "3-D"},
        shapes_known=True,
    ),
    "linear, 2-D": Case(
        lambda: linear(lambda m, x: m.fc(m.bn(x))), (2, 4), {"fc": ("bn",)}, shapes_known=True
    ),
    "linear, 2-D behind flatten": Case(
        lambda: linear(lambda m, x: m.fc(m.bn(x.flatten(1)))), (2, 2, 2), {"fc": ("bn",)}
    ),
    "Conv1d": Case(
        lambda: Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm1d(4), conv=nn.Conv1d(4, 3, 3)),
        (2, 4, 6),
        {"conv": ("bn",)},
    ),
    "Conv3d": Case(
        lambda: Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm3d(4), conv=nn.Conv3d(4, 3, 3)),
        (2, 4, 4, 4, 4),
        {"conv": ("bn",)},
    ),
    "Conv1d without a batch, rank unknown": Case(
        lambda: Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm1d(6), conv=nn.Conv1d(4, 3, 3)),
        (4, 6),
        refused={"bn": "not folded forward: conv: 4 input channels, but a batch norm over 6"},
    ),
}


def absorb(case: Case, x: torch.Tensor) -> tuple[nn.Module, fx.GraphModule]:
    """Return the case's model in `x`'s dtype, and its graph after the pass."""
    model = case.model().to(x.dtype)
    gm = fxquant.trace(model)
    apply(LiftFunctionals(), gm)
    if case.shapes_known:
        ShapeProp(gm).propagate(x)
    assert apply(AbsorbBatchNorm(), gm) == bool(case.folded)
    return model, gm


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_absorbs_or_refuses_and_computes_the_same(case: Case) -> None:
    x = torch.randn(case.shape)
    model, gm = absorb(case, x)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5
    known = {each.name: record(each).folded for each in gm.graph.nodes}
    assert {name: folded for name, folded in known.items() if folded} == case.folded
    assert refusals(gm) == {name: (reason,) for name, reason in case.refused.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_second_run_changes_nothing(case: Case) -> None:
    _, gm = absorb(case, torch.randn(case.shape))
    text = graph_text(gm)
    assert not apply(AbsorbBatchNorm(), gm)
    assert graph_text(gm) == text


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
    ids=str,
)
def test_keeps_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    model, gm = absorb(CASES["grouped"], x)
    assert {parameter.dtype for parameter in gm.parameters()} == {dtype}
    assert relative_error(outputs(gm, x), outputs(model, x)) < tolerance


def test_folds_and_deletes_the_batchnorm() -> None:
    gm = fxquant.trace(CASES["no padding"].model())
    assert graph_text(gm) == cleandoc("""
        x = input()
        bn = self.bn(x) # BatchNorm2d
        conv = self.conv(bn) # Conv2d
        return conv
    """)
    apply(AbsorbBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv(x) # Conv2d · folded: bn
        return conv
    """)
    assert set(gm.state_dict()) == {"conv.weight", "conv.bias"}


def test_keeps_batchnorm_before_a_conv_that_pads_with_zeros() -> None:
    gm = fxquant.trace(CASES["zeros"].model())
    apply(AbsorbBatchNorm(), gm)
    assert graph_text(gm) == cleandoc(f"""
        x = input()
        bn = self.bn(x) # BatchNorm2d · refused: {PADS}
        conv = self.conv(bn) # Conv2d
        return conv
    """)


def test_gives_the_call_behind_the_batchnorm_a_copy_of_a_shared_conv() -> None:
    gm = fxquant.trace(CASES["shared conv, one call without batch norm"].model())
    apply(AbsorbBatchNorm(), gm)
    assert graph_text(gm) == cleandoc("""
        x = input()
        conv = self.conv_1(x) # Conv2d · folded: bn
        conv_1 = self.conv(x) # Conv2d
        add = operator.add(conv, conv_1)
        return add
    """)


def test_keeps_batchnorm_whose_result_is_returned_too() -> None:
    model = Net(
        lambda m, x: (m.conv(y := m.bn(x)), y), bn=nn.BatchNorm2d(4), conv=nn.Conv2d(4, 4, 1)
    )
    gm = fxquant.trace(model)
    assert not apply(AbsorbBatchNorm(), gm)
    assert refusals(gm) == {"bn": ("not folded forward: it also feeds output",)}


def test_keeps_batchnorm_in_training_mode() -> None:
    gm = fxquant.trace(CASES["no padding"].model())
    gm.get_submodule("bn").train()
    assert not apply(AbsorbBatchNorm(), gm)
    assert refusals(gm) == {
        "bn": (
            "not folded forward: it is in training mode: it normalizes by each batch's own "
            "statistics",
        )
    }


def test_keeps_batchnorm_before_a_conv1d_without_a_batch() -> None:
    model = Net(lambda m, x: m.conv(m.bn(x)), bn=nn.BatchNorm1d(4), conv=nn.Conv1d(4, 3, 3))
    gm = fxquant.trace(model)
    x = torch.randn(4, 4)  # batch norm takes positions for channels
    ShapeProp(gm).propagate(x)
    assert not apply(AbsorbBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


def test_keeps_a_batchnorm_subclass_with_a_forward_of_its_own() -> None:
    class BatchNormRelu(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    model = Net(lambda m, x: m.conv(m.bn(x)), bn=BatchNormRelu(4), conv=nn.Conv2d(4, 3, 3))
    gm = fxquant.trace(model, leaf_modules=(BatchNormRelu,))
    x = torch.randn(2, 4, 6, 6)
    assert not apply(AbsorbBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5


def test_computes_the_same_when_the_graph_also_reads_the_weight() -> None:
    model = Net(
        lambda m, x: F.conv_transpose2d(m.conv(m.bn(x)), m.conv.weight * 2),
        bn=nn.BatchNorm2d(4),
        conv=nn.Conv2d(4, 3, 3),
    )
    gm = fxquant.trace(model)
    x = torch.randn(2, 4, 6, 6)
    apply(AbsorbBatchNorm(), gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 1e-5
