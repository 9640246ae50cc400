"""Sensitivities are squared changes of the outputs, and speak of calls as rules do."""

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe, Rule, TensorSpec
from fxquant.mixed_precision.allocation import allocate
from fxquant.mixed_precision.options import Option, Options
from fxquant.mixed_precision.sensitivity import measure_sensitivities
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.recipe.budget import Budget
from tests.helpers import Net, outputs, whole

BUDGET = Budget(average_bits=4, weight_bits=(2, 4, 8))
BOTH = Budget(average_bits=4, weight_bits=(2, 4, 8), activation_bits=(4, 8))
WEIGHTS_ONLY = Recipe.minmax(activation_bits=None)


def measured(
    model: nn.Module,
    batches: list[Any],
    recipe: Recipe = WEIGHTS_ONLY,
    budget: Budget = BUDGET,
    **options: Any,
) -> Options:
    prepared = fxquant.prepare(model, recipe)
    fxquant.calibrate(prepared, batches)
    return measure_sensitivities(prepared, batches, budget, **options)


def losses(options: Iterable[Option], name: str, side: str = "weights") -> dict[int, float]:
    return {each.bits: each.loss for each in options if (each.name, each.side) == (name, side)}


def changed(model: nn.Module, x: Tensor, name: str, bits: int, spec: TensorSpec | None) -> float:
    """Return the squared change of the outputs, a sample, with one layer of `model` rounded."""
    rounded = copy.deepcopy(model)
    layer: Any = rounded.get_submodule(name)
    spec = TensorSpec(**{**vars(spec or TensorSpec()), "bits": bits})
    layer.weight.data = quantize_layer(layer, spec).weight
    return float((outputs(rounded, x) - outputs(model, x)).square().sum()) / len(x)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


def test_a_linear_model_is_measured_exactly_in_the_mean() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(64, 6)
    found = losses(measured(model, [x], draws=200), "0")
    assert list(found) == [2, 4, 8]
    for bits, loss in found.items():
        expected = changed(model, x, "0", bits, WEIGHTS_ONLY.weights)
        assert loss == pytest.approx(expected, rel=0.15)


def test_small_errors_of_each_layer_change_the_outputs_as_measured() -> None:
    model, x = network(), torch.randn(64, 2, 6, 6)
    options = measured(model, [x], draws=50)
    for name in ("0", "2", "4"):
        expected = changed(model, x, name, 8, WEIGHTS_ONLY.weights)
        assert losses(options, name)[8] == pytest.approx(expected, rel=0.3)


def test_weights_are_rounded_by_the_recipes_spec() -> None:
    model, x = nn.Sequential(nn.Linear(64, 8)), torch.randn(64, 64)
    spec = TensorSpec(symmetric=True, range="mse", clip_weight=2.0)
    recipe = Recipe(weights=spec, activations=None)
    found = losses(measured(model, [x], recipe, draws=100), "0")
    assert found[2] == pytest.approx(changed(model, x, "0", 2, spec), rel=0.15)
    assert found[2] < 0.8 * losses(measured(model, [x], draws=100), "0")[2]


def test_activations_are_measured_where_their_quantizers_will_be() -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU6(), nn.Linear(32, 3))
    x = 4 * torch.randn(64, 6)
    recipe = Recipe.minmax()
    options = measured(model, [x], recipe, BOTH, draws=100)
    prepared = fxquant.calibrate(fxquant.prepare(model, Recipe.minmax(activation_bits=4)), [x])
    quantizer: Any = whole(fxquant.convert(prepared)).get_submodule("quantizers._1")
    hidden = model[:2](x).detach()
    error = (model[2](quantizer(hidden)) - model[2](hidden)).detach()
    expected = float(error.square().sum()) / len(x)
    assert losses(options, "2", "activations")[4] == pytest.approx(expected, rel=0.15)
    assert losses(options, "2", "activations")[8] < 0.02 * expected


def test_samples_of_one_batch_add_up_as_those_of_many() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(64, 6)
    whole_batches = losses(measured(model, [x], batch_size=64, draws=300), "0")
    single = losses(measured(model, [x], batch_size=1, draws=5), "0")
    assert whole_batches[4] == pytest.approx(single[4], rel=0.2)


def test_the_seed_decides_and_pytorchs_generator_stays() -> None:
    model, x = network(), torch.randn(16, 2, 6, 6)
    state = torch.get_rng_state()
    first, again, other = (measured(model, [x], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first != other


def test_the_prepared_model_stays_as_it_is() -> None:
    model, x = network(), torch.randn(16, 2, 6, 6)
    prepared = fxquant.calibrate(fxquant.prepare(model, Recipe.aciq(), verify=False), [x])
    before, text = copy.deepcopy(prepared.state_dict()), fxquant.text(prepared)
    with torch.no_grad():
        measure_sensitivities(prepared, [x], BOTH)
    assert fxquant.text(prepared) == text
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in prepared.parameters())
    assert not any(module._forward_hooks for module in prepared.modules())


def test_counts_weights_and_multiply_accumulates_of_a_sample() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ConvTranspose2d(4, 6, 2, 2), nn.Flatten(),
        nn.Linear(6 * 8 * 8, 5),
    )  # fmt: skip
    options = measured(model, [torch.randn(3, 2, 6, 6), torch.randn(2, 2, 6, 6)])
    counts = {each.name: (each.num_weights, each.multiply_accumulates) for each in options}
    assert counts == {
        "0": (4 * 1 * 9, 4 * 4 * 4 * 9),
        "1": (4 * 6 * 4, 4 * 4 * 4 * 6 * 4),
        "3": (384 * 5, 384 * 5),
    }


def test_a_layer_that_is_called_twice_is_one_choice_of_both_calls() -> None:
    model = Net(lambda m, x: m.head(m.a(x)) + m.head(m.b(x)), a=nn.Linear(4, 4),
                b=nn.Linear(4, 4), head=nn.Linear(4, 3))  # fmt: skip
    x = torch.randn(64, 4)
    options = measured(model, [x], draws=100)
    (head,) = {each.multiply_accumulates for each in options if each.name == "head"}
    assert head == 2 * 12
    expected = changed(model, x, "head", 4, WEIGHTS_ONLY.weights)
    both = measured(model, [x], Recipe.minmax(), BOTH)
    assert [each.bits for each in both if each.readers == ("head",)] == [4, 8]
    assert losses(options, "head")[4] == pytest.approx(expected, rel=0.2)


def test_copies_that_folding_makes_of_a_layer_are_one_choice() -> None:
    model = Net(
        lambda m, x: m.one(m.conv(x)) + m.two(m.conv(x)),
        conv=nn.Conv2d(2, 3, 1), one=nn.BatchNorm2d(3), two=nn.BatchNorm2d(3),
    )  # fmt: skip
    options = measured(model, [torch.randn(8, 2, 4, 4)])
    assert {(each.name, each.num_weights) for each in options} == {("conv", 12)}


def test_what_rules_fix_has_one_option_and_what_they_skip_has_none() -> None:
    model, x = network(), torch.randn(16, 2, 6, 6)
    rules = [Rule("0", weights=8, activations=8), Rule(nn.Linear, skip=True)]
    options = measured(model, [x], Recipe.minmax(rules=rules), BOTH)
    known = [(each.name, each.side, each.bits, each.fixed) for each in options]
    assert known == [
        ("0", "weights", 8, True),
        ("2", "weights", 2, False),
        ("2", "weights", 4, False),
        ("2", "weights", 8, False),
        ("0", "activations", 8, True),
        ("2", "activations", 4, False),
        ("2", "activations", 8, False),
    ]


def test_activations_without_widths_in_the_budget_are_fixed_at_the_recipes() -> None:
    model, x = network(), torch.randn(16, 2, 6, 6)
    options = measured(model, [x], Recipe.minmax(activation_bits=6))
    known = [each for each in options if each.side == "activations"]
    assert [(each.bits, each.fixed) for each in known] == [(6, True)] * 3


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.other = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.other(self.conv(x)) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def test_calls_that_read_one_activation_share_its_choice() -> None:
    options = measured(Residual(), [torch.randn(16, 2, 6, 6)], Recipe.minmax(), BOTH)
    readers = {each.name: each.readers for each in options if each.side == "activations"}
    assert readers == {
        "stem": ("stem",),
        "conv": ("conv", "add"),
        "other": ("other",),
        "fc": ("fc",),
    }


def test_the_input_of_an_average_has_the_width_of_its_result() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(m.a(x))
        return m.fc(F.adaptive_avg_pool2d(y, 1).flatten(1)), m.b(y)

    model = Net(forward, a=nn.Conv2d(2, 2, 1), b=nn.Conv2d(2, 2, 1), fc=nn.Linear(2, 3))
    options = measured(model, [torch.randn(8, 2, 6, 6)], Recipe.minmax(), BOTH)
    assert {each.readers for each in options if each.readers} == {("a",), ("fc", "b")}


@pytest.mark.parametrize("bits", [4, 16])
def test_rules_of_an_allocation_set_the_widths_of_all_quantizers(bits: int) -> None:
    model, x = Residual(), torch.randn(16, 2, 6, 6)
    budget = Budget(average_bits=8, weight_bits=(3,), activation_bits=(bits,))
    found = allocate(measured(model, [x], Recipe.minmax(), budget), budget)
    quantized = fxquant.quantize(model, [x], Recipe.minmax(rules=found.rules()))
    known = [each.spec.bits for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert known == [bits] * 5
    layers = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert [layer.weight_spec.bits for layer in layers] == [3] * 4


@pytest.mark.parametrize("recipe", [Recipe.minmax(), Recipe.aciq(activation_bits=4)])
def test_tensors_that_a_concatenation_joins_are_measured_in_its_range(recipe: Recipe) -> None:
    model = Net(
        lambda m, x: m.last(torch.cat([m.one(x).relu(), m.other(x).relu()], 1)),
        one=nn.Conv2d(2, 4, 1), other=nn.Conv2d(2, 4, 1), last=nn.Conv2d(8, 3, 1),
    )  # fmt: skip
    with torch.no_grad():
        model.get_submodule("other").weight.mul_(100)  # type: ignore[operator]
    found = measured(model, [torch.randn(8, 2, 4, 4) for _ in range(4)], recipe, BOTH)
    coarse, fine = losses(found, "last", "activations").values()
    assert coarse > 20 * fine > 0


def test_in_place_calls_behind_a_watched_activation_are_taken() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten()
    )
    plain = copy.deepcopy(model)
    plain[1] = nn.ReLU()
    x = torch.randn(16, 2, 6, 6)
    expected = measured(plain, [x], Recipe.minmax(), BOTH)
    assert measured(model, [x], Recipe.minmax(), BOTH) == expected


def test_an_input_that_the_model_changes_in_place_is_taken() -> None:
    model = Net(lambda m, x: m.b(x.relu_()) + m.a(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    options = measured(model, [torch.randn(8, 4)], Recipe.minmax(), BOTH)
    assert losses(options, "a")[4] > 0


def test_ranges_of_each_batch_are_measured_before_their_relu() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    options = measured(model, [torch.randn(32, 6)], Recipe.aciq(activation_dynamic=True), BOTH)
    found = losses(options, "2", "activations")
    assert found[4] > found[8] > 0


class Detector(nn.Module):
    """Python code around two regions, of which `head` is called at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)
        self.spare = nn.Conv2d(3, 3, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x = torch.stack([image * 2 for image in images])
        if len(images) > 100:
            x = self.spare(x)
        y = self.body(x)
        maps = [self.head(y), self.head(F.max_pool2d(y, 2))]
        return [{"scores": each, "best": each.argmax(1)} for each in maps]


def test_models_of_several_regions_are_measured_through_the_code_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = list(torch.randn(4, 3, 8, 8))
    with caplog.at_level(logging.WARNING, "fxquant"):
        options = measured(Detector(), [batch], budget=BOTH, draws=100)
    assert {each.name for each in options} == {"body.0", "head", "spare"}
    assert [(each.bits, each.fixed) for each in options if each.name == "spare"] == [(8, True)]
    assert (
        "no gradient of the outputs reaches 1 weights, which keep their bits: spare" in caplog.text
    )
    assert losses(options, "head")[2] > losses(options, "head")[4] > 0
    (operations,) = {each.multiply_accumulates for each in options if each.name == "head"}
    assert operations == 8 * (64 + 16)


class Tied(Detector):
    """The weight of a region's layer is used around the region too."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.detach = detach

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = super().forward(images)
        weight: Tensor = self.body.get_parameter("0.weight")
        weight = weight.detach() if self.detach else weight
        return [*found, {"extra": F.conv2d(torch.stack(images), weight)}]


def test_only_calls_that_will_be_quantized_count() -> None:
    batch = list(torch.randn(4, 3, 8, 8))
    tied = Tied(detach=False)
    detached = copy.deepcopy(tied)
    detached.detach = True
    options = [measured(model, [batch]) for model in (tied, detached)]
    assert losses(options[0], "body.0") == pytest.approx(losses(options[1], "body.0"))


def test_an_unbatched_input_is_not_split() -> None:
    model = nn.Sequential(nn.Conv1d(16, 2, 3))
    (first, *_) = measured(model, [torch.randn(16, 10)])
    assert first.multiply_accumulates == 2 * 8 * 16 * 3


def test_a_model_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(PassError, match="measure_sensitivities: got a Sequential: give what"):
        measure_sensitivities(network(), [torch.randn(1, 2, 6, 6)], BUDGET)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="`batches` is empty"):
        measure_sensitivities(fxquant.prepare(network(), WEIGHTS_ONLY), [], BUDGET)


@dataclass
class Result:
    logits: Tensor
    number: int = 0


class Carries(nn.Module):
    """Returns a class of its own; goes on from what the last call computed."""

    last: Any = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Result:
        if x.sum() > 1e9:
            return Result(x)
        self.last = self.fc(x + self.last)
        return Result(self.last)


def test_what_a_model_carries_from_call_to_call_has_no_gradients() -> None:
    prepared = fxquant.prepare(Carries())
    batches = [torch.randn(4, 4) for _ in range(3)]
    fxquant.calibrate(prepared, batches)
    options = fxquant.measure_sensitivities(prepared, batches, Budget(average_bits=4), draws=2)
    assert {each.side for each in options} == {"weights", "activations"}
    assert all(each.loss > 0 for each in options)


def test_outputs_without_a_gradient_are_an_error() -> None:
    model = Net(lambda m, x: m.fc(x).argmax(1), fc=nn.Linear(4, 3))
    with pytest.raises(CalibrationError, match="batch 0: none of the model's outputs has a grad"):
        measured(model, [torch.randn(2, 4)])


def test_gradients_that_are_not_finite_name_the_layer() -> None:
    model = Net(
        lambda m, x: m.b(m.a(x) * 0).sqrt(), a=nn.Linear(4, 3), b=nn.Linear(3, 3, bias=False)
    )
    with pytest.raises(CalibrationError, match=r"^a: NaN or infinity in the gradients"):
        measured(model, [torch.randn(2, 4)])


def test_the_bar_can_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)
    measured(model, [x], progress=False)
    measured(model, [x])  # no terminal
    assert capsys.readouterr().err == ""
