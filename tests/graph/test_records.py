"""Records stay with their nodes: one writer, copies that do not leak, a journal that is saved."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import Recipe
from fxquant.graph.journal import read_recipe, write_journals
from fxquant.graph.records import (
    Record,
    Refusal,
    annotate,
    record,
    refusals_of,
    refuse,
    tell_refusals,
    value_of,
)
from tests.helpers import Net, node

RECIPE = Recipe.minmax(weight_bits=4)


def traced() -> fx.GraphModule:
    return fxquant.trace(Net(lambda m, x: m.relu(m.fc(x)), fc=nn.Linear(4, 4), relu=nn.ReLU()))


def test_a_node_without_a_record_has_an_empty_one() -> None:
    gm = traced()
    assert record(node(gm, "fc")) == Record()
    assert "fxquant" not in node(gm, "fc").meta


def test_annotate_writes_over_what_it_names_and_keeps_the_rest() -> None:
    fc = node(traced(), "fc")
    annotate(fc, folded=("bn",), relu="relu")
    annotate(fc, relu="relu_1", skipped=True)
    assert record(fc) == Record(folded=("bn",), relu="relu_1", skipped=True)


def test_annotate_knows_no_other_fields() -> None:
    with pytest.raises(TypeError, match="unfused"):
        annotate(node(traced(), "fc"), unfused=True)


def test_a_record_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record(node(traced(), "fc")).relu = "relu"  # type: ignore[misc]


def test_a_refusal_is_recorded_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fc = node(traced(), "fc")
    caplog.set_level("INFO", logger="fxquant")
    for reason in ("too old", "too new", "too old"):
        refuse(fc, "not folded", reason)
    refuse(fc, "not lowered", "too old")
    assert record(fc).refused == (
        Refusal("not folded", "too old"),
        Refusal("not folded", "too new"),
        Refusal("not lowered", "too old"),
    )
    assert caplog.messages == [
        "fc: not folded: too old",
        "fc: not folded: too new",
        "fc: not lowered: too old",
    ]
    assert {each.levelname for each in caplog.records} == {"INFO"}


def test_refusals_are_counted_in_one_line_without_those_known_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gm = traced()
    nodes = list(gm.graph.nodes)
    refuse(nodes[0], "not folded", "too old")
    before = refusals_of([gm])
    tell_refusals("convert", [gm], before)
    assert not caplog.messages
    for each in nodes:
        refuse(each, "not folded", "too old")
    refuse(nodes[0], "left in float", "too new")
    tell_refusals("convert", [gm], before)
    assert caplog.messages == [
        f"convert: {len(nodes) - 1} not folded, 1 left in float (left in float: too new); "
        "fxquant.report tells which and why"
    ]


def test_what_leaves_no_call_in_float_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    gm = traced()
    refuse(node(gm, "fc"), "not folded", "too old")
    tell_refusals("prepare", [gm])
    assert not caplog.messages
    caplog.set_level("INFO", logger="fxquant")
    tell_refusals("prepare", [gm])
    assert caplog.messages == [
        "prepare: 1 not folded (too old); fxquant.report tells which and why"
    ]


def test_a_node_computes_its_own_value_unless_it_is_told_otherwise() -> None:
    fc = node(traced(), "fc")
    assert value_of(fc) == "fc"
    annotate(fc, value_of="relu")
    assert value_of(fc) == "relu"
    annotate(fc, value_of="")
    assert value_of(fc) == ""


def test_what_is_written_on_a_copy_stays_there() -> None:
    gm = traced()
    annotate(node(gm, "fc"), relu="relu")
    copied = copy.deepcopy(gm)
    annotate(node(copied, "fc"), skipped=True)
    assert record(node(gm, "fc")) == Record(relu="relu")
    assert record(node(copied, "fc")) == Record(relu="relu", skipped=True)


def test_the_journal_brings_records_and_recipe_through_pickling() -> None:
    gm = traced()
    annotate(node(gm, "fc"), relu="relu", clamp=(0.0, 6.0))
    write_journals(gm, RECIPE)
    loaded = pickle.loads(pickle.dumps(gm))
    assert record(node(loaded, "fc")) == Record()
    assert read_recipe(loaded) == RECIPE
    assert record(node(loaded, "fc")) == Record(relu="relu", clamp=(0.0, 6.0))


def test_the_journal_leaves_newer_records_alone() -> None:
    gm = traced()
    annotate(node(gm, "fc"), relu="relu")
    write_journals(gm, RECIPE)
    annotate(node(gm, "fc"), relu=None, skipped=True)
    read_recipe(gm)
    assert record(node(gm, "fc")) == Record(skipped=True)


def test_the_journal_is_not_read_into_a_graph_that_changed() -> None:
    gm = traced()
    annotate(node(gm, "fc"), relu="relu")
    write_journals(gm, RECIPE)
    loaded = pickle.loads(pickle.dumps(gm))
    relu = node(loaded, "relu")
    relu.replace_all_uses_with(node(loaded, "fc"))
    loaded.graph.erase_node(relu)
    assert read_recipe(loaded) == RECIPE
    assert record(node(loaded, "fc")) == Record()


def test_without_a_journal_there_is_no_recipe() -> None:
    assert read_recipe(traced()) is None


def test_the_journal_adds_nothing_to_the_state_dict_nor_to_the_outputs() -> None:
    gm, x = traced(), torch.randn(2, 4)
    before, expected = list(gm.state_dict()), gm(x)
    write_journals(gm, RECIPE)
    assert list(gm.state_dict()) == before
    assert torch.equal(gm(x), expected)


def test_a_sequential_that_stays_in_python_runs_past_its_journal() -> None:
    model = nn.Sequential(Branch(), nn.Linear(4, 4)).eval()
    prepared, x = fxquant.prepare(model, RECIPE), torch.randn(2, 4)
    assert isinstance(prepared, nn.Sequential)
    assert torch.equal(prepared(x), model(x))


class Branch(nn.Module):
    """Cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x
