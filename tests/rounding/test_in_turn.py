"""What learns in turn: each unit once, behind those in front of it, from a checkpoint or anew."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import Recipe
from fxquant.modules.figures import LearnedRounding
from fxquant.passes import QuantizeWeights
from fxquant.recipe.reconstruction import Method
from fxquant.rounding.blocks.find import Block, find_blocks
from fxquant.rounding.in_turn import Unit, learn_in_turn
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs
from fxquant.streaming.long_runs import Run
from fxquant.streaming.value_store import ValueStore
from tests.helpers import apply, whole

LEARNED = LearnedRounding(steps=1, seconds=0.5, error_nearest=0.1, error_learned=0.01)


def both() -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return three linear layers with weights of 3 bits, and in float."""
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)))
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(Recipe.minmax(weight_bits=3)), gm)
    return gm, reference


def zero(subgraph: Subgraph) -> None:
    subgraph.layer.weight_integers.zero_()
    subgraph.layer.rounding = LEARNED


def learn_all(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    run: Run,
    change: Callable[[Subgraph], None] = zero,
) -> tuple[bool, list[tuple[str, int]]]:
    """Learn the layers in turn; return whether one changed, and which were learned."""
    done = []
    subgraphs = find_subgraphs(gm)
    with ValueStore() as store, torch.no_grad():
        sides = LayersSideBySide(Lesson(reference, [(torch.rand(8, 4),)]), gm, subgraphs, store)

        def learn(subgraph: Subgraph, number: int) -> None:
            assert sum(len(inputs) for inputs, _ in sides.rows(subgraph)) == 8
            change(subgraph)
            done.append((subgraph.name, number))

        return learn_in_turn(subgraphs, sides, learn, run, "learning"), done


def record_alone(subgraph: Subgraph) -> None:
    subgraph.layer.rounding = LEARNED


def test_units_are_learned_in_order_with_their_numbers() -> None:
    gm, reference = both()
    assert learn_all(gm, reference, Run()) == (True, [("0", 0), ("2", 1), ("3", 2)])


def test_nothing_changed_where_all_values_stay() -> None:
    gm, reference = both()
    assert not learn_all(gm, reference, Run(), record_alone)[0]


def test_a_bias_alone_is_a_change() -> None:
    gm, reference = both()

    def shift(subgraph: Subgraph) -> None:
        record_alone(subgraph)
        subgraph.layer.set_bias(subgraph.layer.bias_values() + 1)

    assert learn_all(gm, reference, Run(), shift)[0]


def test_finished_units_are_put_back_and_the_streams_go_on_behind_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gm, reference = both()
    torch.manual_seed(1)
    interrupted = iter(range(3))

    def zero_two(subgraph: Subgraph) -> None:
        if next(interrupted) == 2:
            raise KeyboardInterrupt
        zero(subgraph)

    fresh = copy.deepcopy(gm)
    with pytest.raises(KeyboardInterrupt):
        learn_all(gm, reference, Run(tmp_path), zero_two)
    torch.manual_seed(1)  # the same data
    assert learn_all(fresh, reference, Run(tmp_path)) == (True, [("3", 2)])
    for subgraph in find_subgraphs(fresh):
        assert not subgraph.layer.weight_integers.any()
        assert subgraph.rounding == LEARNED


def test_each_unit_is_one_line_in_the_log_and_stands_in_the_bar(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    gm, reference = both()
    with caplog.at_level(logging.INFO, "fxquant"):
        learn_all(gm, reference, Run(progress=False))
    assert caplog.messages[-3:] == [f"{name}: {LEARNED}" for name in ("0", "2", "3")]
    assert capsys.readouterr().err == ""
    learn_all(gm, reference, Run(progress=True))
    assert "learning 3 of 3 layers: 100%|" in capsys.readouterr().err


def block_of(gm: fx.GraphModule) -> Block:
    return find_blocks(gm)[0]


def layer_of(gm: fx.GraphModule) -> Subgraph:
    return find_subgraphs(gm)[0]


@pytest.mark.parametrize(("unit_of", "cost"), [(layer_of, 100_012), (block_of, 200_020)])
@pytest.mark.parametrize("method", ["adaround", "adaquant"])
def test_a_unit_comes_back_from_its_state(
    unit_of: Callable[[fx.GraphModule], Unit], cost: int, method: Method
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    recipe = Recipe.adaround(
        weight_bits=3, steps=5, samples=8, blocks=unit_of is block_of, method=method
    )
    learned = whole(fxquant.quantize(model, [torch.rand(8, 3, 4, 4)], recipe, progress=False))
    nearest = whole(fxquant.quantize(model, [torch.rand(8, 3, 4, 4)], Recipe.minmax(weight_bits=3)))
    one, other = unit_of(learned), unit_of(nearest)
    other.restore(one.state())
    assert other.rounding == one.rounding
    assert all(map(torch.equal, other.values(), one.values()))
    assert one.cost == other.cost == cost
