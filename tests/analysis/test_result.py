"""An analysis says its summary in sentences, and chooses rules by place."""

import math
from dataclasses import replace
from pathlib import Path

from fxquant import Recipe, Rule
from fxquant.analysis.judge import Score
from fxquant.analysis.ranking import TensorCost
from fxquant.analysis.remedies import Change, Remedy
from fxquant.analysis.result import Analysis, Effort
from fxquant.display.figures import Bars, Tiles

EFFORT = Effort(
    num_samples=256, num_judged=64, is_held_out=True, num_ranked=32, num_decisions=64,
    seconds=12.0, forwards=9.6,
)  # fmt: skip


def cost(name: str, place: int, share: float) -> TensorCost:
    return TensorCost(
        name=name, side="weights", bits=4, more_bits=8, own=20.0, alone=30.0, share=share,
        wins=1.0, place=place, num_weights=100,
    )  # fmt: skip


def made() -> Analysis:
    costs = (cost("a", 1, 60.0), cost("b", 2, 30.0))
    change = Change("8 bits for a weights", rules=(Rule("a", weights=8),), more_bytes=50)
    return Analysis(
        costs=costs,
        remedies=(Remedy(change, 10.0, 3.0, Recipe.minmax()),),
        outliers=(),
        recipe=Recipe.minmax(weight_bits=4),
        scores={
            "both": Score(80.0, 12.0),
            "weights": Score(90.0, 15.0),
            "activations": Score(100.0, math.inf),
        },
        float_score=Score(100.0, math.inf),
        is_metric=False,
        effort=EFFORT,
        explained=0.9,
        total_bytes=100,
        every=costs,
    )


def test_the_first_sentence_says_which_side_costs_what() -> None:
    assert made().heads() == [
        "Rounding costs 20.0 points, 12.0 dB of the outputs left: weights alone 10.0 points "
        "(15.0 dB), activations alone 0.0 points (no change).",
        "Costliest: a weights, b weights; 90 % of the change of the outputs.",
        "Points are percent of the float model's decisions, on 64 of 256 samples, set aside (give "
        "or take 5.0); ranked by 32, with gradients, in 12 s.",
    ]


def test_without_points_it_speaks_of_decibels() -> None:
    blind = replace(
        made(),
        scores={"both": Score(None, 12.0)},
        float_score=Score(None, math.inf),
        effort=replace(EFFORT, num_decisions=None, is_held_out=False),
    )
    heads = blind.heads()
    assert heads[0] == "Rounding costs 12.0 dB of the outputs left."
    assert heads[-1].startswith("Judged on 64 of 256 samples, also calibrated on; ")


def test_rows_say_what_more_bits_take_and_remedies_their_percentage() -> None:
    ranked, remedies, _ = made().tables()
    assert ranked.records()[0]["more_bytes"] == 50
    assert ranked.records()[0]["more_bits"] == "8 bits"
    assert remedies.records()[0]["more_percent"] == 50.0


def test_a_page_draws_what_tensors_cost(tmp_path: Path) -> None:
    found = made()
    tiles, bars = found.figures()
    assert isinstance(tiles, Tiles)
    assert [each.value for each in tiles.tiles] == ["20.0 points", "12.0 dB"]
    assert isinstance(bars, Bars)
    assert [each.values for each in bars.bars] == [(60.0, None), (30.0, None)]
    found.to_html(tmp_path / "costs.html")
    assert "What each tensor costs" in (tmp_path / "costs.html").read_text()


def test_rules_are_those_of_the_first_by_place_whatever_the_order_of_rows() -> None:
    found = made()
    assert found.rules(top=1) == (Rule("a", weights=8),)
    assert found.sort("name", descending=True).rules(top=1) == (Rule("a", weights=8),)
    assert found.select("b").rules() == (Rule("b", weights=8),)
    assert [each.name for each in found.worst(1).costs] == ["a"]
