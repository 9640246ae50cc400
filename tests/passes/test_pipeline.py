"""Passes and pipelines run alone, in each other, and in PyTorch's PassManager."""

from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import fxquant
from fxquant import CalibrationError, Pass, PassError, Pipeline
from fxquant.passes import (
    AbsorbBatchNorm,
    ChooseRanges,
    CorrectBias,
    DropIdentities,
    FoldBatchNorm,
    InsertObservers,
    LiftFunctionals,
    MarkFusedRelu,
    QuantizeWeights,
    SmoothInputs,
)
from tests.helpers import apply, graph_text, outputs, randomize_batchnorms, relative_error

PASSES: list[PassBase] = [
    DropIdentities(),
    LiftFunctionals(),
    FoldBatchNorm(),
    AbsorbBatchNorm(),
    MarkFusedRelu(),
    InsertObservers(),
    ChooseRanges(),
    QuantizeWeights(),
    CorrectBias(fxquant.trace(nn.ReLU())),
]


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU())
    randomize_batchnorms(made)
    return made


@dataclass(frozen=True, eq=False)
class AppendNegation(Pass):
    """A pass of a user: negate the output, at most `times` times."""

    times: int = 1

    def run(self, gm: fx.GraphModule) -> bool:
        (output,) = gm.graph.find_nodes(op="output")
        if len(gm.graph.find_nodes(op="call_function", target=torch.neg)) >= self.times:
            return False
        with gm.graph.inserting_before(output):
            output.args = (gm.graph.call_function(torch.neg, output.args),)
        return True


def test_a_pipeline_runs_its_passes_in_order() -> None:
    gm = fxquant.trace(model())
    x = torch.randn(2, 3, 6, 6)
    pipeline = Pipeline(DropIdentities(), FoldBatchNorm(), MarkFusedRelu())
    assert isinstance(pipeline, PassBase)
    assert str(pipeline) == "DropIdentities → FoldBatchNorm → MarkFusedRelu"
    expected = outputs(gm, x)
    assert apply(pipeline, gm)
    assert graph_text(gm).splitlines()[1:-1] == [
        "_0 = self.0(input_1) # Conv2d · folded: 2 · fused: _3",
        "_3 = self.3(_0) # ReLU · fused into _0",
    ]
    assert relative_error(outputs(gm, x), expected) < 1e-5
    assert not apply(pipeline, gm)


def test_a_pipeline_is_modified_if_one_of_its_passes_is() -> None:
    gm = fxquant.trace(model())
    assert not apply(Pipeline(), gm)
    assert not apply(Pipeline(LiftFunctionals(), AbsorbBatchNorm()), gm)
    assert apply(Pipeline(LiftFunctionals(), DropIdentities(), AbsorbBatchNorm()), gm)
    assert not apply(Pipeline(LiftFunctionals(), DropIdentities(), AbsorbBatchNorm()), gm)


def test_pipelines_nest() -> None:
    gm = fxquant.trace(model())
    inner = Pipeline(DropIdentities(), FoldBatchNorm())
    assert apply(Pipeline(inner, Pipeline(MarkFusedRelu())), gm)
    assert str(Pipeline(inner, MarkFusedRelu())) == str(Pipeline(*inner.passes, MarkFusedRelu()))


def test_a_pass_regenerates_the_code_of_what_it_changed() -> None:
    gm, x = fxquant.trace(model()), torch.randn(2, 3, 6, 6)
    expected = outputs(gm, x)
    assert apply(AppendNegation(), gm)
    assert "torch.neg" in gm.code
    assert torch.equal(outputs(gm, x), -expected)
    assert not apply(AppendNegation(), gm)


@pytest.mark.parametrize("each", PASSES, ids=str)
def test_a_pass_says_that_it_needs_a_graph_module(each: PassBase) -> None:
    name = type(each).__name__
    with pytest.raises(PassError) as caught:
        each(nn.ReLU())  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{name} works on a GraphModule, got ReLU: make one with fxquant.trace(model)"
    )


@pytest.mark.parametrize("each", PASSES, ids=str)
def test_a_pass_leaves_a_graph_without_work_as_it_is(each: PassBase) -> None:
    gm = fxquant.trace(nn.Sequential(nn.Sigmoid()))
    before = graph_text(gm), gm.code
    assert not apply(each, gm)
    assert (graph_text(gm), gm.code) == before


def test_what_a_pass_requires_is_checked_in_a_pipeline_too() -> None:
    gm = fxquant.trace(model())
    with pytest.raises(CalibrationError, match="has seen a batch"):
        Pipeline(InsertObservers(), ChooseRanges())(gm)


def lint(module: nn.Module) -> None:
    assert isinstance(module, fx.GraphModule)
    module.graph.lint()


def test_passes_run_in_pytorchs_pass_manager() -> None:
    gm, x = fxquant.trace(model()), torch.randn(2, 3, 6, 6)
    expected = outputs(gm, x)
    manager = PassManager(
        [DropIdentities(), FoldBatchNorm(), Pipeline(AbsorbBatchNorm(), MarkFusedRelu())],
        run_checks_after_each_pass=True,
    )
    manager.add_checks(lint)
    result = manager(gm)
    assert result.modified
    assert result.graph_module is gm
    assert "folded: 2 · fused: _3" in graph_text(gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    assert not manager(gm).modified


def test_pytorchs_pass_manager_orders_passes_by_constraints() -> None:
    fold, drop = FoldBatchNorm(), DropIdentities()
    manager = PassManager([fold, drop], [this_before_that_pass_constraint(drop, fold)])
    gm = fxquant.trace(model())
    manager(gm)
    assert manager.passes == [drop, fold]
    assert "folded: 2" in graph_text(gm)


def test_two_passes_with_the_same_options_are_no_cycle_for_pytorchs_pass_manager() -> None:
    first, mark, second = AppendNegation(2), MarkFusedRelu(), AppendNegation(2)
    constraints = [
        this_before_that_pass_constraint(first, mark),
        this_before_that_pass_constraint(mark, second),
    ]
    manager = PassManager([second, mark, first], constraints)
    manager(fxquant.trace(model()))
    assert manager.passes == [first, mark, second]


def test_pytorchs_pass_manager_repeats_until_nothing_changes() -> None:
    gm = fxquant.trace(model())
    PassManager([AppendNegation(3)], steps=10)(gm)
    assert graph_text(gm).count("torch.neg") == 3


def test_logs_one_line_a_pass(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="fxquant")
    Pipeline(DropIdentities(), LiftFunctionals())(fxquant.trace(model()))
    assert caplog.messages == ["DropIdentities: changed", "LiftFunctionals: unchanged"]


def test_passes_run_on_a_copy_of_every_graph_and_leave_the_model() -> None:
    gm = fxquant.trace(nn.Sequential(nn.BatchNorm1d(4).eval(), nn.Identity(), nn.ReLU()))
    before = graph_text(gm)
    copied = Pipeline(DropIdentities()).on_copy_of(gm)
    assert graph_text(gm) == before
    assert len(graph_text(copied).splitlines()) < len(before.splitlines())


def use_silu(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), nn.ReLU):
            gm.add_module(str(node.target), nn.SiLU())


class Torchs(PassBase):
    """A pass of PyTorch's kind, which returns another module."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        made = fx.GraphModule(graph_module, fx.Tracer().trace(graph_module))
        use_silu(made)
        return PassResult(made, True)


def test_a_function_is_a_pass_of_its_name() -> None:
    gm, x = fxquant.trace(model()), torch.randn(2, 3, 6, 6)
    pipeline = Pipeline(DropIdentities(), use_silu, Torchs(), PassManager([MarkFusedRelu()]))
    assert str(pipeline) == "DropIdentities → use_silu → Torchs → PassManager"
    assert repr(pipeline) == "Pipeline(DropIdentities(), use_silu, Torchs, PassManager)"
    before = outputs(gm, x)
    assert apply(pipeline, gm)
    assert "SiLU" in graph_text(gm)
    assert not torch.equal(outputs(gm, x), before)


def test_what_another_pass_returns_is_taken_over() -> None:
    gm = fxquant.trace(model())
    result = Pipeline(Torchs())(gm)
    assert result is not None
    assert result.graph_module is gm
    assert "SiLU" in graph_text(gm)


@pytest.mark.parametrize("kind", [KeyError, OSError, RuntimeError])
def test_an_error_in_a_function_names_it(kind: type[Exception]) -> None:
    def failing(gm: fx.GraphModule) -> None:
        raise kind(2, "why") if kind is OSError else kind("why")

    with pytest.raises(Exception, match=r"failing: .*why"):
        Pipeline(failing)(fxquant.trace(model()))


def test_a_function_that_leaves_a_broken_graph_is_named() -> None:
    def dangling(gm: fx.GraphModule) -> None:
        gm.graph.find_nodes(op="call_module")[0].target = "nowhere"

    with pytest.raises(RuntimeError, match=r"^dangling: .* nowhere"):
        Pipeline(dangling)(fxquant.trace(model()))


def test_what_is_no_pass_is_refused_before_anything_runs() -> None:
    with pytest.raises(PassError, match=r"^FoldBatchNorm is a class: give an instance"):
        Pipeline(FoldBatchNorm)  # type: ignore[arg-type]


def test_the_repr_of_a_pass_shows_what_is_not_the_default() -> None:
    gm = fxquant.trace(nn.ReLU())
    assert repr(AppendNegation()) == "AppendNegation()"
    assert repr(AppendNegation(3)) == "AppendNegation(times=3)"
    assert repr(InsertObservers()) == "InsertObservers()"
    assert repr(CorrectBias(gm)) == "CorrectBias(reference=<graph of 3 nodes>)"
    assert repr(SmoothInputs(fxquant.Recipe(), [])).endswith("batches=<list of 0>)")
    assert repr(Pipeline(FoldBatchNorm(), Pipeline())) == "Pipeline(FoldBatchNorm(), Pipeline())"
