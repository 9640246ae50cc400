"""analyze says which side costs what, which tensors that comes from, and what helps."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, Recipe, RecipeError, Rule
from fxquant.analysis.remedies import Remedy
from tests.helpers import Net, outputs


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def batches(count: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8) for _ in range(count)]


def titles(remedies: tuple[Remedy, ...]) -> str:
    return "; ".join(each.change.title for each in remedies)


def test_a_spoiled_layer_is_the_costliest_and_its_rule_wins_what_was_promised() -> None:
    model, data = network(), batches()
    recipe = Recipe.minmax(rules=[Rule("3", weights=2)])
    found = fxquant.analyze(model, data, recipe)
    first = found.costs[0]
    assert (first.name, first.side, first.bits, first.more_bits) == ("3", "weights", 2, 8)
    assert first.share is not None
    assert first.share > 90
    assert first.measured is not None
    assert first.measured.decibels is not None
    assert first.measured.decibels > 10
    assert found.rules(top=1) == (Rule("3", weights=8),)
    best = found.remedies[0]
    assert "3 weights" in best.change.title
    again = fxquant.quantize(model, data[:3] + data[4:7], best.recipe)
    held_out = torch.cat([data[3], data[7]])
    same = (outputs(again, held_out).argmax(1) == outputs(model, held_out).argmax(1)).float()
    assert found.scores["both"].points is not None
    assert best.points is not None
    promised = found.scores["both"].points + best.points
    assert abs(promised - 100 * same.mean().item()) < 1e-3


def test_says_which_side_costs_more() -> None:
    found = fxquant.analyze(network(), batches(), Recipe.minmax(activation_bits=2))
    weights, activations = (found.scores[side].decibels for side in ("weights", "activations"))
    assert weights is not None
    assert activations is not None
    assert weights > activations + 10
    assert found.heads()[0].startswith("Rounding costs ")
    assert "weights alone " in found.heads()[0]
    assert found.costs[0].side == "activations"


def test_shares_add_up_to_the_whole_change() -> None:
    found = fxquant.analyze(network(), batches(), Recipe.minmax(weight_bits=4, activation_bits=4))
    assert found.explained is not None
    assert abs(found.explained - 1) < 0.3
    shares = [each.share for each in found.costs if each.share is not None]
    assert abs(sum(shares) / 100 - found.explained) < 1e-6


def test_model_and_batches_stay_as_they_are() -> None:
    model, data = network().train(), batches(4)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    again = [each.clone() for each in data]
    fxquant.analyze(model, data, Recipe.minmax(weight_bits=4))
    assert model.training
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert all(map(torch.equal, data, again))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_points_are_those_of_a_metric_that_gets_copies() -> None:
    model, seen = network(), []

    def evaluate(copied: nn.Module) -> float:
        seen.append(copied is model or copied.training)
        return float(-outputs(copied, batches(1)[0]).square().mean())

    found = fxquant.analyze(model, batches(), Recipe.minmax(weight_bits=3), evaluate=evaluate)
    assert seen
    assert not any(seen)
    assert found.is_metric
    assert "Points are the metric's" in found.heads()[-1]
    assert found.float_score.points == evaluate(model)


def test_an_output_without_decisions_has_decibels_and_no_points() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    data = [torch.randn(16, 8) for _ in range(4)]
    found = fxquant.analyze(model, data, Recipe.minmax(weight_bits=3))
    assert found.scores["both"].points is None
    assert "points" not in str(found)
    assert found.remedies


class Objects(nn.Module):
    """As many boxes as the input has rows above a score, image by image, as detectors give."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        rows = [self.backbone(image) for image in images]
        return [{"boxes": each[each[:, 0] > 0.01]} for each in rows]


def test_a_detector_needs_a_metric_or_outputs_of_one_shape() -> None:
    torch.manual_seed(0)
    model = Objects()
    data = [([torch.randn(64, 8), torch.randn(64, 8)],) for _ in range(4)]
    recipe = Recipe.minmax(weight_bits=2, activation_bits=2)
    found = fxquant.analyze(model, data, recipe, evaluate=lambda _: 50.0)
    assert found.costs
    assert found.scores["both"].points == 50.0


def test_what_forward_makes_of_the_outputs_is_judged() -> None:
    torch.manual_seed(0)
    model, recipe = Objects(), Recipe.minmax(weight_bits=2, activation_bits=2)
    data = [([torch.randn(64, 8), torch.randn(64, 8)],) for _ in range(4)]

    def sums(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack([each["boxes"].sum() for each in model(batch[0])])

    found = fxquant.analyze(model, data, recipe, forward=sums)
    assert found.scores["both"].decibels is not None
    with pytest.raises(CalibrationError, match="calls parts of the model, and never the model"):
        fxquant.analyze(model, data, recipe, forward=lambda model, x: model.backbone(x[0][0]))


@pytest.mark.parametrize(
    ("recipe", "sides"),
    [
        (Recipe.minmax(weight_bits=3, activation_bits=None), {"weights"}),
        (Recipe.minmax(weight_bits=None, activation_bits=3), {"activations"}),
        (Recipe.aciq(weight_bits=None, activation_bits=3), {"activations"}),
        (Recipe.minmax(activation_dynamic=True, activation_bits=3), {"weights", "activations"}),
        (Recipe.minmax(activation_per_channel=True, activation_bits=3), {"weights", "activations"}),
        (Recipe.aciq(bias_correction="weights", weight_bits=3), {"weights", "activations"}),
        (Recipe.minmax(equalization=True, weight_bits=3), {"weights", "activations"}),
        (Recipe.minmax(batchnorm_tuning=True, weight_bits=3), {"weights", "activations"}),
    ],
)
def test_any_recipe_is_studied(recipe: Recipe, sides: set[str]) -> None:
    found = fxquant.analyze(network(), batches(4), recipe, samples=16)
    assert {each.side for each in found.costs} == sides
    assert set(found.scores) == {"both", *(sides if len(sides) == 2 else ())}
    assert found.remedies
    assert str(found)


def test_what_a_recipe_learns_is_left_out_and_said() -> None:
    learned = Recipe.adaround(weight_bits=3, blocks=False, steps=10)
    found = fxquant.analyze(network(), batches(4), learned, samples=16)
    assert found.recipe.reconstruction is None
    assert any(head.startswith("What it learns (adaround)") for head in found.heads())
    mixed = Recipe.mixed(average_bits=3)
    found = fxquant.analyze(network(), batches(4), mixed, samples=16)
    assert found.recipe.budget is None
    assert any(head.startswith("Its budget is left out") for head in found.heads())


def test_models_with_state_without_batch_norms_and_in_parts_are_studied() -> None:
    torch.manual_seed(0)
    lstm = Net(
        lambda m, x: m.last(m.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(4, 8, batch_first=True), last=nn.Linear(8, 5),
    )  # fmt: skip
    data = [torch.randn(8, 6, 4) for _ in range(4)]
    found = fxquant.analyze(lstm, data, Recipe.minmax(weight_bits=3, activation_bits=3))
    assert [each.name for each in found.costs if each.side == "weights"] == ["last"]


class Parts(nn.Module):
    """Two traceable parts, and Python between that no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.second = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.detach().sum().item() > 1e9:
            y = y * 2
        result: Tensor = self.second(y)
        return result


def test_a_model_in_parts_is_ranked_through_the_code_between() -> None:
    torch.manual_seed(0)
    model, data = Parts(), [torch.randn(16, 8) for _ in range(4)]
    found = fxquant.analyze(model, data, Recipe.minmax(rules=[Rule("second.2", weights=2)]))
    assert found.costs[0].name == "second.2"
    assert found.rules(1) == (Rule("second.2", weights=8),)


def test_a_rule_for_an_end_keeps_the_bits_that_ends_have() -> None:
    recipe = Recipe.minmax(weight_bits=3, activation_bits=3, end_bits=6)
    found = fxquant.analyze(network(), batches(4), recipe, samples=16)
    own = {(each.name, each.side): each.bits for each in found.costs}
    assert own["0", "weights"] == own["6", "activations"] == 6
    assert own["3", "weights"] == 3
    rules = {rule.match: (rule.weights, rule.activations) for rule in found.rules(len(own))}
    assert rules["0"] == (8, 8)
    only = found.select("0").rules(1)[0]
    assert {only.weights, only.activations} == {6, 8}


def test_tensors_of_8_bits_would_stay_in_float() -> None:
    found = fxquant.analyze(network(), batches(4), Recipe.minmax(), samples=16)
    assert {each.more_bits for each in found.costs} == {None}
    rule = found.rules(1)[0]
    assert None in (rule.weights, rule.activations)
    assert found.costs[0].measured is not None


def test_one_batch_judges_too_and_that_is_said() -> None:
    found = fxquant.analyze(network(), batches(1), Recipe.minmax(weight_bits=3))
    assert not found.effort.is_held_out
    assert "16 of 16 samples, also calibrated on" in found.heads()[-1]
    held_out = fxquant.analyze(network(), batches(4), Recipe.minmax(weight_bits=3))
    assert "16 of 64 samples, set aside" in held_out.heads()[-1]


def test_rows_are_chosen_and_written() -> None:
    found = fxquant.analyze(network(), batches(4), Recipe.minmax(weight_bits=3), samples=16)
    assert found.worst(1).costs == found.costs[:1]
    assert {each.name for each in found.select("3").costs} == {"3"}
    assert found.to_csv().startswith("name,side,bits,")
    assert "NaN" not in found.to_json()
    assert [table.title for table in found.tables()] == ["", "remedies, each tried", "outliers"]


def test_says_what_is_wrong() -> None:
    with pytest.raises(CalibrationError, match="analyze: `batches` is empty"):
        fxquant.analyze(network(), [])
    with pytest.raises(RecipeError, match="samples=0: give a positive number"):
        fxquant.analyze(network(), batches(1), samples=0)
    with pytest.raises(CalibrationError, match="`evaluate` gives nan: it must be finite"):
        fxquant.analyze(network(), batches(2), evaluate=lambda _: math.nan)


def test_refusals_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    add: Callable[[Any, Any], Any] = lambda m, x: m.two(m.one(x) + 1000 * x)  # noqa: E731
    model = Net(add, one=nn.Linear(8, 8), two=nn.Linear(8, 4))
    with caplog.at_level(logging.WARNING, logger="fxquant"):
        fxquant.analyze(model, [torch.randn(8, 8) for _ in range(4)], Recipe.minmax())
    said = [entry.message for entry in caplog.records]
    assert len(said) == len(set(said))
