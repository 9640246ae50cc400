"""Passes and pipelines run alone, in each other, and in PyTorch's PassManager."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase
from torch.fx.passes.infra.pass_manager import PassManager, this_before_that_pass_constraint

import fxquant
from fxquant import CalibrationError, Pass, PassError, Pipeline, StorageError
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


def test_dumps_the_graph_after_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made" / "here"
    monkeypatch.setenv("FXQUANT_DUMP", str(folder))
    gm = fxquant.trace(model())
    Pipeline(DropIdentities(), Pipeline(FoldBatchNorm()), MarkFusedRelu())(gm)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [
        "000_DropIdentities.txt",
        "001_FoldBatchNorm.txt",
        "002_MarkFusedRelu.txt",
    ]
    assert re.findall("BatchNorm2d", files[0].read_text())
    assert files[-1].read_text() == fxquant.text(gm)


def test_a_dump_that_cannot_be_written_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FXQUANT_DUMP", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"^DropIdentities: FXQUANT_DUMP=.* or unset it$"):
        DropIdentities()(fxquant.trace(model()))


def test_dumps_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXQUANT_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    DropIdentities()(fxquant.trace(model()))
    assert list(tmp_path.iterdir()) == []


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
