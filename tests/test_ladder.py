"""search tries recipes in their order and stops at the first that loses little enough."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, Recipe, RecipeError
from fxquant.display.figures import Points, Tiles
from fxquant.ladder import Rung, ladder
from fxquant.modules.quantized_layer import QuantizedLayer
from tests.helpers import outputs

RUNGS = [
    Rung("two bits", Recipe.minmax(weight_bits=2)),
    Rung("four bits", Recipe.minmax(weight_bits=4)),
    Rung("eight bits", Recipe.minmax(weight_bits=8)),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def batches(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(count)]


def scores(*values: float) -> Callable[[nn.Module], float]:
    """Return an `evaluate` that gives the float model 90, then the rungs these scores."""
    left = [90.0, *values]
    return lambda model: left.pop(0)


def test_stops_at_the_first_rung_that_meets_the_target() -> None:
    found = fxquant.search(
        network(), batches(), max_drop=0.5, rungs=RUNGS, evaluate=scores(80, 89.6)
    )
    assert found.met
    assert found.recipe is RUNGS[1].recipe
    assert [attempt.rung.name for attempt in found.attempts] == ["two bits", "four bits"]
    assert [round(attempt.drop, 3) for attempt in found.attempts] == [10, 0.4]
    again = fxquant.quantize(network(), batches(), RUNGS[1].recipe)
    x = batches()[0]
    assert torch.equal(outputs(found.model, x), outputs(again, x))


def test_hands_back_the_best_where_none_meets_the_target() -> None:
    found = fxquant.search(
        network(), batches(), max_drop=0.5, rungs=RUNGS, evaluate=scores(80, 85, 83)
    )
    assert not found.met
    assert found.recipe is RUNGS[1].recipe
    assert found.heads()[0] == (
        f"{RUNGS[1].name}: 85.00 of 90.00, 5.00 below float; at most 0.5 was asked for: not met; "
        "this is the best"
    )
    table = found.tables()[0]
    assert table.values("rung") == ["float", *(rung.name for rung in RUNGS)]
    assert table.values("verdict") == [None, None, "the best, target not met", None]
    assert "the best, target" in str(found)


def test_a_page_has_each_rung_and_the_report_of_the_model_that_was_taken(tmp_path: Path) -> None:
    found = fxquant.search(
        network(), batches(), max_drop=0.5, rungs=RUNGS, evaluate=scores(80, 89.6)
    )
    tiles, points = found.figures()
    assert isinstance(tiles, Tiles)
    assert isinstance(points, Points)
    assert [(each.name, each.y, each.is_chosen) for each in points.points] == [
        ("two bits", 80, False), ("four bits", 89.6, True),
    ]  # fmt: skip
    assert points.levels == (("float", 90.0), ("target", 89.5))
    assert [type(part).__name__ for part in found.parts()] == ["Report"]
    page = found.to_html(tmp_path / "search.html").read_text(encoding="utf-8")
    assert page.count("<section") == 2


def test_a_batch_in_four_judges_where_nothing_else_does() -> None:
    model, data = network(), batches()
    found = fxquant.search(model, data, max_drop=100, rungs=RUNGS[:1])
    judged = torch.cat([data[3], data[7]])
    same = model(judged).argmax(1) == found.model(judged).argmax(1)
    assert found.float_score == 100
    assert found.attempts[0].score == pytest.approx(same.double().mean().item() * 100)
    kept = [batch for number, batch in enumerate(data) if number not in (3, 7)]
    x, again = data[0], fxquant.quantize(model, kept, RUNGS[0].recipe)
    assert torch.equal(outputs(found.model, x), outputs(again, x))


def test_the_ladder_runs_from_top_to_bottom() -> None:
    given = ladder(weight_bits=3, activation_bits=4)
    rungs = [Rung(rung.name, _short(rung.recipe)) for rung in given]
    found = fxquant.search(
        network(), batches(4), max_drop=0, rungs=rungs, evaluate=scores(*range(len(rungs)))
    )
    assert len(found.attempts) == len(rungs) == 12
    assert found.recipe is rungs[-1].recipe
    widths = {
        each.weight_spec.bits for each in found.model.modules() if isinstance(each, QuantizedLayer)
    }
    assert widths <= {2, 3, 4, 5, 6, 8}


def _short(recipe: Recipe) -> Recipe:
    if recipe.reconstruction is None:
        return recipe
    return replace(recipe, reconstruction=replace(recipe.reconstruction, steps=3, samples=32))


def test_the_callers_model_stays_as_it_is() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fxquant.search(model, batches(), rungs=RUNGS[:1], max_drop=100)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 5), nn.Dropout(0.9)

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        return self.drop(self.fc(x.sub_(1) + y))  # type: ignore[no-any-return]


def pairs() -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(16, 8), "y": torch.randn(16, 8)} for _ in range(4)]


def test_models_with_several_inputs_are_judged_too() -> None:
    data, model = pairs(), ByKeyword().train()
    again = [{name: each.clone() for name, each in batch.items()} for batch in data]
    found = fxquant.search(model, data, rungs=RUNGS[2:], max_drop=100)
    given = [(batch, "label") for batch in data]
    by_forward = fxquant.search(
        model, given, rungs=RUNGS[2:], max_drop=100, forward=lambda model, batch: model(**batch[0])
    )
    assert found.float_score == by_forward.float_score == 100
    assert found.attempts[0].score == by_forward.attempts[0].score > 80
    for batch, as_it_was in zip(data, again, strict=True):
        assert all(torch.equal(each, as_it_was[name]) for name, each in batch.items())


def test_a_metric_gets_copies_in_eval_mode() -> None:
    model, seen = ByKeyword().train(), []

    def evaluate(copied: nn.Module) -> float:
        seen.append((copied is model, copied.training))
        copied.train()
        return 1.0

    found = fxquant.search(model, pairs(), rungs=RUNGS[:2], max_drop=0, evaluate=evaluate)
    assert seen == [(False, False)] * 2
    assert model.training
    assert not found.model.training


def test_says_what_is_wrong() -> None:
    model = network()
    with pytest.raises(RecipeError, match="max_drop=-1: give 0 or a positive number"):
        fxquant.search(model, batches(), max_drop=-1)
    with pytest.raises(RecipeError, match="`rungs` is empty"):
        fxquant.search(model, batches(), rungs=[])
    with pytest.raises(CalibrationError, match="1 batch: give at least two"):
        fxquant.search(model, batches(1))
    with pytest.raises(CalibrationError, match="the score of the float model is nan"):
        fxquant.search(model, batches(), evaluate=lambda _: float("nan"))
