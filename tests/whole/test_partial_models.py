"""Models that cannot be traced whole, as a user quantizes them: a small detector, a large one."""

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fxquant
from benchmarks.networks.small_models import build
from fxquant import CalibrationError, CaptureError, FxquantError, Recipe, RecipeError, Rule
from fxquant.capture.naming import find_regions
from fxquant.capture.region import Region
from fxquant.graph.operations import is_batchnorm
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes.convert import reconstruct_rounding
from fxquant.rounding.methods import learners
from fxquant.rounding.methods.adaround import learn_rounding
from fxquant.rounding.methods.losses import Rows
from fxquant.rounding.pool import RowPool
from tests.detectors import (
    BATCHES,
    LAYERS,
    REGIONS,
    Backbone,
    Detector,
    Images,
    assert_equal,
    conv_bn,
    detector,
    images,
    losses,
    run,
)
from tests.helpers import assert_same_state, needs_int8, randomize_batchnorms


def quantize(recipe: Recipe | str | None = None, **options: Any) -> nn.Module:
    return fxquant.quantize(detector(), BATCHES, recipe, **options)


def prepare(recipe: Recipe | str | None = None, **options: Any) -> nn.Module:
    return fxquant.prepare(detector(), recipe, **options)


def layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLayer)}


def traced_modules(model: nn.Module) -> list[nn.Module]:
    regions = find_regions(model).values()
    return [module for region in regions for module in region.get_submodule("traced").modules()]


def num_batchnorms(model: nn.Module) -> int:
    graphs = find_regions(model).values()
    return sum(bool(is_batchnorm(gm, node)) for gm in graphs for node in gm.graph.nodes)


def test_prepared_is_of_the_models_type_and_computes_the_same() -> None:
    model, prepared = detector(), prepare()
    assert type(prepared) is Detector
    assert list(find_regions(prepared)) == [*REGIONS, "many"]
    assert num_batchnorms(prepared) == 0
    torch.testing.assert_close(run(prepared), run(model))


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        (Recipe.aciq(), 40.0),
        (Recipe.minmax(), 40.0),
        (Recipe.minmax(activation_bits=None), 40.0),
        (Recipe.aciq(weight_bits=4), 20.0),
    ],
    ids=["aciq", "minmax", "weights only", "4 bits"],
)
def test_converted_is_close_and_has_no_batch_norm_left(recipe: Recipe, least: float) -> None:
    converted = quantize(recipe)
    assert type(converted) is Detector
    assert num_batchnorms(converted) == 0
    assert min(losses(run(detector()), run(converted))) > least
    assert not any(isinstance(module, (Observer, ChannelMean)) for module in converted.modules())


LEARNED = {
    "gram": Recipe.adaround(weight_bits=3, activation_bits=None, method="gram"),
    "adaquant": Recipe.adaround(weight_bits=3, activation_bits=None, method="adaquant", steps=200),
    "parallel": Recipe.adaround(weight_bits=3, activation_bits=None, parallel=True, steps=200),
    "blocks": Recipe.adaround(weight_bits=3, activation_bits=None, blocks=True, steps=200),
    "tuned": Recipe.minmax(weight_bits=3, activation_bits=None, batchnorm_tuning=True),
    "mixed": Recipe.mixed(
        average_bits=4, activation_bits=None, reconstruction=None, weight_bits=(3, 4, 8)
    ),
}


@pytest.mark.parametrize("recipe", LEARNED.values(), ids=LEARNED)
def test_every_method_brings_regions_closer(recipe: Recipe) -> None:
    expected = run(detector())
    nearest = losses(expected, run(quantize(Recipe.minmax(weight_bits=3, activation_bits=None))))
    found = losses(expected, run(quantize(recipe, progress=False)))
    assert sum(found) > sum(nearest) + 1


def test_regions_are_equalized() -> None:
    weights = fxquant.TensorSpec(symmetric=True)
    found = [
        run(quantize(Recipe(weights=weights, activations=None, equalization=equalization)))
        for equalization in (False, True)
    ]
    expected = run(detector())
    assert not torch.equal(found[0][0], found[1][0])
    assert min(losses(expected, found[1])) > 30


def test_the_callers_model_stays_as_it_was() -> None:
    model = detector().train()
    before = copy.deepcopy(model.state_dict())
    fxquant.quantize(model, BATCHES)
    assert all(module.training for module in model.modules())
    assert not find_regions(model)
    assert not model._forward_pre_hooks
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_layer_serves_all_levels_and_saw_all_of_them() -> None:
    prepared = prepare("minmax")
    highest: list[float] = []
    handle = prepared.get_submodule("head.tower").register_forward_pre_hook(
        lambda _, inputs: highest.append(inputs[0].max().item())
    )
    fxquant.calibrate(prepared, BATCHES)
    handle.remove()
    for name, module in prepared.named_modules():
        if isinstance(module, Observer) and not name.startswith("many"):
            assert module.num_batches == (4 if name.startswith("head.") else 2), name
    assert len(highest) == 4
    assert prepared.get_buffer("head.tower.observers.input_1.high").item() == max(highest)
    assert len(layers(fxquant.convert(prepared))) == len(LAYERS)


BY_KIND: dict[str, Callable[[Images], Any]] = {
    "list": lambda batch: batch,
    "tuple with targets": lambda batch: (batch, [{"labels": 1}] * len(batch)),
    "tuple of tuples": lambda batch: (tuple(batch), (None,) * len(batch)),
    "dict": lambda batch: {"images": batch},
    "dict with targets": lambda batch: {"targets": None, "images": batch},
}


@pytest.mark.parametrize("recipe", [Recipe.aciq(), Recipe.adaround(steps=2, samples=8)])
@pytest.mark.parametrize("kind", BY_KIND.values(), ids=BY_KIND)
def test_calibrate_takes_batches_of_the_usual_kinds(
    kind: Callable[[Images], Any], recipe: Recipe
) -> None:
    prepared = prepare(recipe)
    assert fxquant.calibrate(prepared, [kind(batch) for batch in BATCHES]) is prepared
    assert_equal(run(fxquant.convert(prepared)), run(quantize(recipe)))


def test_calibrate_takes_a_forward_a_generator_and_a_plain_loop() -> None:
    prepared, by_loop = prepare(), prepare()
    fxquant.calibrate(
        prepared, enumerate(BATCHES), forward=lambda model, batch: model(images=batch[1])
    )
    for batch in BATCHES:
        run(by_loop, batch)
    expected = run(quantize())
    assert_equal(run(fxquant.convert(prepared)), expected)
    assert_equal(run(fxquant.convert(by_loop)), expected)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: Any = None) -> Any:
        return self.fc(x) if x.shape[0] > 1 else x


class Two(Keyword):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.fc(x) + y if x.shape[0] > 1 else x


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (
            detector(),
            "text",
            "('text'): give tensors, tuples or lists that start with one, or dicts of keywords; "
            "or pass forward=lambda model, batch: … to calibrate",
        ),
        (
            detector(),
            {"images": images(), "labels": None},
            "{images: [float32 3×8×8, float32 3×8×8, float32 3×8×8, float32 3×8×8], labels: None}: "
            "Detector.forward(images",
        ),
        (
            Two(),
            torch.ones(2, 4),
            "(float32 2×4): Two cannot be called with one argument: missing a required argument: "
            "'y'; give dicts of keywords",
        ),
    ],
    ids=["text", "unknown keyword", "two arguments"],
)
def test_arguments_that_do_not_fit_are_an_error(model: nn.Module, batch: Any, message: str) -> None:
    prepared = fxquant.prepare(model)
    with pytest.raises(CalibrationError) as caught:
        fxquant.calibrate(prepared, [batch])
    assert str(caught.value).startswith(f"batch 0 {message}")


def test_keyword_only_arguments_may_stay_at_their_defaults() -> None:
    x = torch.randn(8, 4)
    model = Keyword().eval()
    assert sqnr(model(x), fxquant.quantize(model, [{"x": x}, x])(x)) > 30


def test_rules_match_names_in_the_whole_model() -> None:
    recipe = Recipe.minmax(
        skip=["head.boxes"],
        rules=[
            Rule("head.scores", weights=4),
            Rule("backbone.*", weights=6),
            Rule("*.1", weights=5),
        ],
    )
    found = {row.name: row.weights for row in fxquant.report(quantize(recipe)).rows}
    assert found.pop("many") == ""
    bits = [6, 6, 8, 5, 4]
    assert found == {
        **{name: f"{each} bits minmax" for name, each in zip(LAYERS, bits, strict=False)},
        "head.boxes": "",
    }


def test_a_rule_of_a_type_matches_in_all_regions() -> None:
    rules = [Rule(nn.Conv2d, weights=3), Rule("head.scores", weights=8)]
    converted = quantize(Recipe.minmax(rules=rules))
    bits = [layer.weight_spec.bits for layer in layers(converted).values()]
    assert bits == [3, 3, 3, 3, 8, 3]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("head.score", "did you mean head.scores"),
        ("tower.1", "did you mean head.tower.1"),
        ("neck.*", "names start with: backbone, head, many"),
    ],
)
def test_a_rule_that_matches_in_no_region_is_an_error(name: str, near: str) -> None:
    recipe = Recipe.minmax(rules=[Rule("head.*", weights=4), Rule(name, weights=4)])
    with pytest.raises(RecipeError) as caught:
        prepare(recipe)
    assert str(caught.value).startswith(f"rule {name!r} (#1) matches no call; {near}")


def test_a_model_with_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"^Detector has nothing to quantize: 7 convolution"):
        prepare(Recipe.aciq(skip=["*"]))
    with pytest.raises(CaptureError, match=r"^Detector has nothing to quantize: 0 convolution"):
        prepare(regions=[])


def test_the_report_lists_calls_regions_and_what_stays_in_python() -> None:
    report = fxquant.report(quantize())
    assert [row.name for row in report.rows] == [*LAYERS, "many"]
    assert report.num_quantized == len(LAYERS)
    regions = [tuple(vars(each).values()) for each in report.regions]
    assert [(path, kind, *numbers) for path, kind, _, *numbers in regions] == [
        ("backbone", "Backbone", 2, 2),
        ("head.tower", "Sequential", 2, 2),
        ("head.scores", "Conv2d", 1, 1),
        ("head.boxes", "Conv2d", 1, 1),
        ("many", "Conv2d", 1, 0),
    ]
    assert [(each.path, each.kind) for each in report.untraced] == [
        ("", "Detector"),
        ("head", "Head"),
        ("many", "Conv2d"),
    ]
    assert report.heads()[:2] == [
        "6 of 7 layers quantized",
        "multiply-adds: 120 k a sample; 100 % in quantized layers",
    ]
    calls, _, graphs, in_python = report.tables()
    assert "head.scores" in calls.values("name")
    assert "head.scores" in graphs.values("region")
    assert in_python.values("name")[0] == "(the model)"
    assert in_python.values("reason")[1] == report.untraced[1].reason
    shown = str(report)
    assert shown.count("\nhead.scores ") == 2
    assert "\n(the model) " in shown


def test_the_report_of_a_prepared_model_has_all_regions() -> None:
    report = fxquant.report(prepare())
    assert [each.path for each in report.regions] == [*REGIONS, "many"]
    assert all(each.num_quantized == 0 for each in report.regions)


def test_the_report_measures_the_outputs_of_every_layer() -> None:
    prepared = fxquant.calibrate(prepare(), BATCHES)
    converted = fxquant.convert(prepared)
    report = fxquant.report(converted, reference=prepared, batches=BATCHES)
    measured = {row.name: row.output_sqnr for row in report.rows}
    assert math.isnan(measured.pop("many"))  # it is not called
    assert list(measured) == LAYERS
    assert all(value > 25 for value in measured.values())
    scores = [
        torch.cat([each.flatten() for batch in BATCHES for each in run(model, batch)[::2]])
        for model in (detector(), converted)
    ]
    assert measured["head.scores"] == pytest.approx(sqnr(*scores), abs=0.01)


def test_the_text_has_each_region_under_its_name() -> None:
    text = fxquant.text(quantize("minmax"))
    parts = dict(part.split(":\n", 1) for part in text.split("\n\n"))
    assert list(parts) == [*REGIONS, "many"]
    assert " ".join(parts["many"].split()) == (
        "input_1 = input() traced = self.traced(input_1) # Conv2d return traced"
    )
    names = [line.partition(" = ")[0] for line in parts["head.tower"].splitlines()]
    assert names == [
        "input_1", "quantizers_input_1", "_0_0", "_0_2", "quantizers__0_2", "_1", "_2", "return _2"
    ]  # fmt: skip
    assert (
        "QuantizedConv2d 8 bits minmax · folded: head.tower.0.1 · fused: _0_2"
        in parts["head.tower"]
    )


def by_torch_save(model: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
    "pickle of a deepcopy": lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
}
in_copies = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
RECIPES = pytest.mark.parametrize(
    "recipe", [Recipe.aciq(), Recipe.adaround(steps=2, samples=8)], ids=["aciq", "adaround"]
)


@RECIPES
@in_copies
def test_copies_of_prepared_and_converted_compute_and_print_the_same(
    duplicate: Callable[[nn.Module], Any], recipe: Recipe
) -> None:
    prepared = fxquant.calibrate(prepare(recipe), BATCHES)
    for model in (prepared, fxquant.convert(prepared)):
        twin = duplicate(model)
        assert type(twin) is Detector
        assert fxquant.text(twin) == fxquant.text(model)
        assert str(fxquant.report(twin)) == str(fxquant.report(model))
        assert twin.state_dict().keys() == model.state_dict().keys()
        assert_equal(run(twin), run(model))


@RECIPES
@in_copies
def test_copies_of_prepared_are_calibrated_on_their_own_and_convert_to_the_same(
    duplicate: Callable[[nn.Module], Any], recipe: Recipe
) -> None:
    prepared = fxquant.calibrate(prepare(recipe), BATCHES[:1])
    twin = duplicate(prepared)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    fxquant.calibrate(twin, BATCHES[1:])
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert_equal(run(fxquant.convert(twin)), run(quantize(recipe)))


def test_statistics_and_weights_load_into_fresh_models() -> None:
    prepared = fxquant.calibrate(prepare(), BATCHES)
    fresh = prepare()
    fresh.load_state_dict(prepared.state_dict())
    converted = fxquant.convert(prepared)
    assert_equal(run(fxquant.convert(fresh)), run(converted))
    other = fxquant.quantize(detector(), [images(4, seed=9)])
    other.load_state_dict(converted.state_dict())
    assert_equal(run(other), run(converted))


def test_converted_moves_and_casts_like_any_module() -> None:
    converted = quantize().double()
    outputs = run(converted, [image.double() for image in images()])
    assert all(output.dtype == torch.float64 for output in outputs)
    assert converted.get_buffer("head.scores.traced.weight_scale").dtype == torch.float32
    assert all(torch.isfinite(output).all() for output in run(converted.half().float()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_a_batch_is_named_in_its_region_and_left_out(bad: float) -> None:
    recipe = Recipe.adaround(steps=2, samples=8)
    prepared, broken = prepare(recipe), images(4, seed=5)
    broken[2][0, 0, 0] = bad
    with pytest.raises(CalibrationError) as caught:
        fxquant.calibrate(prepared, [BATCHES[0], broken])
    message = str(caught.value)
    assert message.startswith("batch 1: NaN or infinity first in the result of 'backbone.x', then")
    fxquant.calibrate(prepared, BATCHES[1:])
    assert_equal(run(fxquant.convert(prepared)), run(quantize(recipe)))


def test_the_call_that_makes_nan_is_named_in_its_region() -> None:
    model = detector()
    with torch.no_grad():
        model.head.tower.get_parameter("1.bias")[0] = math.inf
    with pytest.raises(CalibrationError, match=r"first in the result of 'head\.tower\._1', then"):
        fxquant.calibrate(fxquant.prepare(model), BATCHES)


def test_nan_seen_in_a_plain_loop_is_reported_by_convert() -> None:
    prepared = prepare()
    run(prepared, [torch.full((3, 8, 8), math.nan)])
    with pytest.raises(CalibrationError, match=r"NaN or infinity in 'backbone\.x' \(the first of"):
        fxquant.convert(prepared)


def test_a_model_without_calibration_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="none of the 7 observed tensors has seen a batch"):
        fxquant.convert(prepare())


@RECIPES
def test_a_region_that_calibration_does_not_call_stays_in_float(recipe: Recipe) -> None:
    converted = quantize(recipe)
    region = find_regions(converted)["many"]
    assert type(region.get_submodule("traced")) is nn.Conv2d
    assert not any(name.startswith("many") for name in layers(converted))
    (left,) = [each for each in fxquant.report(converted).untraced if each.path == "many"]
    assert (left.kind, left.reason) == ("Conv2d", "never called in calibration")
    x = torch.rand(101, 3, 8, 8)
    assert torch.equal(region(x), detector().many(x))
    assert all(torch.isfinite(output).all() for output in run(converted, list(x)))


def test_example_inputs_check_the_folding_of_regions() -> None:
    for example in (images(), (images(), None), {"images": images()}):
        prepared = prepare(example_inputs=example)
        torch.testing.assert_close(run(prepared), run(detector()))


def test_leaf_modules_and_regions_are_handed_on() -> None:
    converted = quantize(leaf_modules=["backbone", nn.ReLU], regions=None)
    assert [each.path for each in fxquant.report(converted).regions] == [*REGIONS[1:], "many"]
    assert type(converted.get_submodule("backbone")) is Backbone
    chosen = quantize(regions=["head.tower"])
    assert [each.path for each in fxquant.report(chosen).regions] == ["head.tower"]
    assert len(layers(chosen)) == 2


def test_bias_correction_takes_the_mean_error_out_in_every_region() -> None:
    options: dict[str, Any] = {"weight_bits": 3, "activation_bits": None}
    corrected = quantize(Recipe.aciq(**options))
    plain = quantize(Recipe.aciq(**options, bias_correction=False))
    assert not any(isinstance(module, ChannelMean) for module in corrected.modules())
    float_layers = dict(prepare().named_modules())
    for name, layer in layers(corrected).items():
        other = layers(plain)[name]
        assert torch.equal(layer.weight_integers, other.weight_integers)
        assert torch.equal(other.bias, float_layers[name].bias)  # type: ignore[arg-type]
        if name != "many.traced":  # which nobody calls
            assert not torch.equal(layer.bias, other.bias)  # type: ignore[arg-type]
    assert mean_error(corrected, "backbone.traced.first.0") < 0.5 * mean_error(
        plain, "backbone.traced.first.0"
    )
    assert mean_error(corrected, "head.scores") < 0.5 * mean_error(plain, "head.scores")


def mean_error(model: nn.Module, name: str) -> float:
    """Return how far the means of a layer's output channels are off, at most."""
    means = []
    for each in (model, prepare()):
        seen: list[Tensor] = []
        handle = each.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(output.transpose(0, 1).flatten(1))
        )
        for batch in BATCHES:
            run(each, batch)
        handle.remove()
        means.append(torch.cat(seen, 1).mean(1))
    return (means[0] - means[1]).abs().max().item()


ADAROUND = Recipe.adaround(weight_bits=3, steps=20, samples=8)


def test_adaround_learns_in_every_region() -> None:
    converted = quantize(ADAROUND)
    for name, layer in layers(converted).items():
        assert layer.rounding is not None, name
        assert layer.rounding.steps == 20
    nearest = quantize(Recipe(weights=ADAROUND.weights, activations=ADAROUND.activations))
    assert any(
        not torch.equal(layer.weight_integers, layers(nearest)[name].weight_integers)
        for name, layer in layers(converted).items()
    )
    rows = {row.name: row for row in fxquant.report(converted).rows}
    assert all(str(rows[name].rounding) in str(fxquant.report(converted)) for name in LAYERS)


def test_adaround_with_many_steps_beats_rounding_to_nearest() -> None:
    recipe = Recipe.adaround(weight_bits=3, steps=200, samples=32)
    data = [images(8, seed) for seed in range(4)]
    learned = fxquant.quantize(detector(), data, recipe)
    nearest = fxquant.quantize(
        detector(), data, Recipe(weights=recipe.weights, activations=recipe.activations)
    )
    expected = run(detector(), data[0])
    gains = [
        one - other
        for one, other in zip(
            losses(expected, run(learned, data[0])),
            losses(expected, run(nearest, data[0])),
            strict=True,
        )
    ]
    assert min(gains) > -0.5
    assert sum(gains) > 4


@pytest.mark.parametrize("leaf_modules", [["many"], []], ids=["all called", "one not called"])
@pytest.mark.parametrize("batches", [BATCHES, [each[:1] for each in BATCHES * 2]], ids=len)
def test_adaround_runs_both_models_once_for_each_region(
    batches: list[Images], leaf_modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = fxquant.calibrate(prepare(ADAROUND, leaf_modules=leaf_modules), batches)
    monkeypatch.setattr(Detector, "num_calls", 0)
    assert len(layers(fxquant.convert(prepared))) == len(LAYERS)
    in_order = 1  # of one batch, to know in which order the regions are called
    assert Detector.num_calls == in_order + 2 * len(REGIONS) * len(batches)


def test_adaround_leaves_prepared_alone_and_gives_the_same_again() -> None:
    prepared = fxquant.calibrate(prepare(ADAROUND), BATCHES)
    before = copy.deepcopy(prepared.state_dict())
    generator = torch.get_rng_state()
    first, second = fxquant.convert(prepared), fxquant.convert(prepared)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_state(first, second)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_batches_given_to_convert_override_those_kept() -> None:
    prepared = fxquant.calibrate(prepare(ADAROUND), BATCHES)
    others = [images(8, seed=7)]
    given = fxquant.convert(prepared, [(batch, None) for batch in others])
    again = fxquant.convert(prepared, [{"images": batch} for batch in others])
    assert_same_state(given, again)
    kept = fxquant.convert(prepared)
    names = [name for name in layers(given) if not same_integers(given, kept, name)]
    assert names


def same_integers(one: nn.Module, other: nn.Module, name: str) -> bool:
    return torch.equal(layers(one)[name].weight_integers, layers(other)[name].weight_integers)


def test_values_in_files_give_the_same_weights() -> None:
    in_files = Recipe.adaround(weight_bits=3, steps=20, samples=8, max_bytes=1000)
    assert_same_state(quantize(in_files), quantize(ADAROUND))


def interrupt_at(layer: int) -> Callable[..., Tensor]:
    """Return `learn_rounding` that is interrupted at its call number `layer`."""
    calls = iter(range(len(LAYERS)))

    def learn(*arguments: Any) -> Tensor:
        if next(calls) == layer:
            raise KeyboardInterrupt
        return learn_rounding(*arguments)

    return learn


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_adaround_goes_on_from_its_checkpoints_to_the_same_bits(
    layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = fxquant.calibrate(prepare(ADAROUND), BATCHES)
    with monkeypatch.context() as patch:
        patch.setattr(learners, "learn_rounding", interrupt_at(layer))
        with pytest.raises(KeyboardInterrupt):
            fxquant.convert(prepared, checkpoint=tmp_path)
    assert len(list(tmp_path.rglob("*.pt"))) == layer
    resumed = fxquant.convert(prepared, checkpoint=tmp_path)
    assert_same_state(resumed, fxquant.convert(prepared))
    assert len(list(tmp_path.rglob("*.pt"))) == len(LAYERS)
    with monkeypatch.context() as patch:
        patch.setattr(learners, "learn_rounding", interrupt_at(0))
        again = fxquant.convert(prepared, checkpoint=tmp_path)
    assert_same_state(again, resumed)
    assert str(fxquant.report(again)) == str(fxquant.report(resumed))


class Guarded(nn.Module):
    """Calls `function` on itself, behind a branch that cannot be traced."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function
        randomize_batchnorms(self)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x) if x.isfinite().all() else []


def one_by_one(model: Any, x: Tensor) -> list[Tensor]:
    results = []
    for layer in model.layers:
        x = layer(x)
        results.append(x)
    return results


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.norm(self.conv(x)))


class Steps(nn.Module):
    """A module whose parts and other methods the code around it calls too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Block(), nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def logits(self, y: Tensor) -> Any:
        return self.norm(self.last(y))

    def forward(self, x: Tensor) -> Any:
        return self.logits(self.first(x))


def shared_tower() -> Guarded:
    tower = conv_bn(3, 4)
    heads = [nn.Sequential(tower, nn.Conv2d(4, 2, 1)) for _ in range(2)]
    return Guarded(lambda m, x: [m.one(x), m.two(x)], one=heads[0], two=heads[1])


def shared_layer() -> Guarded:
    conv = nn.Conv2d(3, 4, 1)
    heads = [nn.Sequential(conv, nn.BatchNorm2d(4)) for _ in range(2)]
    return Guarded(
        lambda m, x: [m.one(x), m.two(x), m.conv(x)], one=heads[0], two=heads[1], conv=conv
    )


HARD: dict[str, Callable[[], Guarded]] = {
    "two regions share a tower": shared_tower,
    "two regions and Python share a layer": shared_layer,
    "Python calls a part of a region": lambda: Guarded(
        lambda m, x: [m.steps(x), m.steps.first(x)], steps=Steps()
    ),
}


@pytest.mark.parametrize("make", HARD.values(), ids=HARD)
def test_what_two_parts_of_a_model_use_works_for_both(make: Callable[[], Guarded]) -> None:
    model, x = make().eval(), torch.randn(4, 3, 6, 6)
    expected = run(model, x)
    prepared = fxquant.prepare(model)
    torch.testing.assert_close(run(prepared, x), expected)
    fxquant.calibrate(prepared, [x])
    assert min(losses(expected, run(fxquant.convert(prepared), x))) > 25


def looped_sequential() -> Guarded:
    return Guarded(one_by_one, layers=nn.Sequential(*conv_bn(3, 4), nn.Conv2d(4, 2, 1)))


def method_called() -> Guarded:
    return Guarded(lambda m, x: [m.steps.logits(m.steps.first(x))], steps=Steps())


ONLY_PARTS: dict[str, tuple[Callable[[], Guarded], list[str], str]] = {
    "layers of a Sequential": (
        looped_sequential, ["layers.0", "layers.3"], "layers.0, layers.1, layers.2, layers.3"
    ),
    "another method": (
        method_called, ["steps.first", "steps.last"],
        "steps.first, steps.first.conv, steps.first.norm, steps.last, steps.norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "names", "parts"), ONLY_PARTS.values(), ids=ONLY_PARTS)
def test_a_region_of_which_python_calls_only_parts_can_be_named_part_by_part(
    make: Callable[[], Guarded], names: list[str], parts: str
) -> None:
    model, x = make().eval(), torch.randn(4, 3, 6, 6)
    expected = run(model, x)
    prepared = fxquant.prepare(model)
    torch.testing.assert_close(run(prepared, x), expected)
    fxquant.calibrate(prepared, [x])
    with pytest.raises(CalibrationError, match=f"only {parts}: name these with regions="):
        fxquant.convert(prepared)
    converted = fxquant.quantize(model, [x], regions=names)
    assert min(losses(expected, run(converted, x))) > 25


def test_what_python_calls_by_itself_stays_in_float_and_all_else_is_released() -> None:
    model, x = HARD["Python calls a part of a region"]().eval(), torch.randn(4, 3, 6, 6)
    converted = fxquant.quantize(model, [x])
    left = [each for each in fxquant.report(converted).untraced if each.path]
    assert [(each.path, each.kind) for each in left] == [
        ("steps.first", "Block"),
        ("steps.first.conv", "Conv2d"),
        ("steps.first.norm", "BatchNorm2d"),
    ]  # fmt: skip
    assert left[0].reason == "called from Python by itself: a float copy of it stays"
    alone = fxquant.quantize(Guarded(lambda m, x: [m.steps(x)], steps=Steps()).eval(), [x])
    names = [name for name, _ in alone.named_parameters()]
    assert names
    assert all(".traced." in name for name in names)
    assert not any(name.endswith("weight") for name in names)
    assert alone.get_submodule("steps").last.bias is alone.get_parameter("steps.traced.last.bias")  # type: ignore[union-attr]


class Fuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = conv_bn(4, 2)

    def forward(self, large: Tensor, small: Tensor) -> Any:
        small = nn.functional.interpolate(self.small(small), scale_factor=2.0)
        return self.last(torch.relu(self.large(large)) + small)


class FuseList(Fuse):
    def forward(self, features: list[Tensor]) -> Any:  # type: ignore[override]
        return super().forward(features[0], features[1])


class FuseDict(Fuse):
    def forward(self, features: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(features["large"], features["small"])


FUSED: dict[str, tuple[type[Fuse], Callable[[Any, Tensor], Any]]] = {
    "tensors": (Fuse, lambda m, x: [m.fuse(x, x[:, :, ::2, ::2])]),
    "a keyword": (Fuse, lambda m, x: [m.fuse(small=x[:, :, ::2, ::2], large=x)]),
    "a list": (FuseList, lambda m, x: [m.fuse([x, x[:, :, ::2, ::2]])]),
    "a dict": (FuseDict, lambda m, x: [m.fuse({"large": x, "small": x[:, :, ::2, ::2]})]),
}


def fused(kind: str) -> Guarded:
    torch.manual_seed(0)
    body, function = FUSED[kind]
    return Guarded(function, fuse=body()).eval()


@pytest.mark.parametrize("kind", FUSED)
def test_a_region_takes_whatever_the_code_around_gives_it(kind: str) -> None:
    x = torch.rand(32, 3, 8, 8)
    expected = run(fused(kind), x)
    learned = Recipe.adaround(weight_bits=3, samples=32, steps=50)
    for recipe, least in ((Recipe.aciq(), 45.0), (learned, 20.0)):
        converted = fxquant.quantize(fused(kind), torch.split(x, 8), recipe)
        assert list(find_regions(converted)) == ["fuse"]
        assert min(losses(expected, run(converted, x))) > least
        assert len(layers(converted)) == 3


@pytest.mark.parametrize("kind", FUSED)
def test_a_layer_learns_from_as_many_rows_whatever_its_region_takes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    class Counting(RowPool):
        def rows(self, *arguments: Any) -> tuple[Rows, Rows]:
            learned, judged = super().rows(*arguments)
            numbers.append(learned.inputs.shape[1] + judged.inputs.shape[1])
            return learned, judged

    monkeypatch.setattr(reconstruct_rounding, "RowPool", Counting)
    recipe = Recipe.adaround(samples=32, steps=2, pool_rows=64, rows=64)
    fxquant.quantize(fused(kind), torch.rand(4, 8, 3, 8, 8), recipe)
    assert numbers == [64, 64, 64]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        y = self.conv(x)
        return y if mask is None else y * mask


def test_an_argument_that_was_fixed_at_its_default_is_given_by_the_first_batch() -> None:
    model = Guarded(lambda m, x: [m.masked(x, mask=x[:, :1])], masked=Masked()).eval()
    x = torch.randn(4, 3, 6, 6)
    calibrated = fxquant.calibrate(fxquant.prepare(model), [x])
    for quantized in (fxquant.convert(calibrated), fxquant.quantize(model, [x])):
        assert min(losses(run(model, x), run(quantized, x))) > 30
    with pytest.raises(FxquantError, match="mask"):
        fxquant.prepare(model)(x)


def test_one_graph_is_still_a_graph_module() -> None:
    converted = fxquant.quantize(Backbone(), [torch.rand(4, 3, 8, 8)])
    assert isinstance(converted, fx.GraphModule)
    assert not isinstance(converted, Region)
    report = fxquant.report(converted)
    assert (report.regions, report.untraced) == ((), ())
    assert "region" not in str(report)


# RetinaNet of torchvision, at a size for which two images take a tenth of a second.

SIZES = {"num_classes": 3, "min_size": 64, "max_size": 96, "score_thresh": 0.0}
PHOTOS = [
    torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    for size in ((64, 80), (70, 64))
]
RETINANET_REGIONS = [
    ("backbone", "BackboneWithFPN"),
    ("head.classification_head.conv", "Sequential"),
    ("head.classification_head.cls_logits", "Conv2d"),
    ("head.regression_head.conv", "Sequential"),
    ("head.regression_head.bbox_reg", "Conv2d"),
]


def with_batchnorms() -> nn.Module:
    return torchvision.models.detection.retinanet_resnet50_fpn(  # type: ignore[no-any-return]
        weights=None, weights_backbone=None, **SIZES
    )


def with_frozen_batchnorms() -> nn.Module:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(2048, 256),
    )
    return torchvision.models.detection.RetinaNet(backbone, **SIZES)  # type: ignore[no-any-return]


RETINANETS = {"batch norm": with_batchnorms, "frozen batch norm": with_frozen_batchnorms}


@functools.cache
def retinanet(kind: str = "batch norm") -> nn.Module:
    torch.manual_seed(0)
    return RETINANETS[kind]().eval()


@functools.cache
def prepared_retinanet(kind: str = "batch norm") -> nn.Module:
    prepared = fxquant.prepare(retinanet(kind))
    batches: list[Any] = [PHOTOS, (PHOTOS[::-1], [{}, {}]), {"images": PHOTOS[:1], "targets": None}]
    return fxquant.calibrate(prepared, batches)


@functools.cache
def converted_retinanet(kind: str = "batch norm") -> nn.Module:
    return fxquant.convert(prepared_retinanet(kind))


def raw_outputs(model: Any) -> dict[str, Tensor]:
    """Return what the heads give, before boxes are chosen: that depends on the last bit."""
    with torch.no_grad():
        batch, _ = model.transform(PHOTOS)
        return model.head(list(model.backbone(batch.tensors).values()))  # type: ignore[no-any-return]


each_retinanet = pytest.mark.parametrize("kind", RETINANETS)


@each_retinanet
def test_retinanet_folds_all_batch_norms(kind: str) -> None:
    model, prepared = retinanet(kind), prepared_retinanet(kind)
    assert type(prepared) is type(model)
    assert [(path, type(gm).__name__) for path, gm in find_regions(prepared).items()] == (
        RETINANET_REGIONS
    )
    assert num_batchnorms(prepared) == 0
    assert "BatchNorm" not in fxquant.text(prepared)
    assert fxquant.text(prepared).count("folded:") == 53
    kinds = (nn.BatchNorm2d, torchvision.ops.FrozenBatchNorm2d)
    assert not any(isinstance(module, kinds) for module in traced_modules(prepared))
    expected = raw_outputs(model)
    for name, value in raw_outputs(prepared).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@each_retinanet
def test_retinanet_at_eight_bits_is_finite_and_close(kind: str) -> None:
    expected, converted = raw_outputs(retinanet(kind)), converted_retinanet(kind)
    for name, value in raw_outputs(converted).items():
        assert torch.isfinite(value).all()
        assert sqnr(expected[name], value) > 25
    with torch.no_grad():
        found = converted(PHOTOS)
    assert len(found) == 2
    assert all(torch.isfinite(each["boxes"]).all() for each in found)
    assert all(len(each["boxes"]) == len(each["scores"]) > 0 for each in found)
    report = fxquant.report(converted)
    assert [(each.path, each.kind) for each in report.regions] == RETINANET_REGIONS
    assert all(each.num_quantized == each.num_layers for each in report.regions)
    assert report.num_quantized == len(layers(converted)) == 53 + 8 + 10


def test_retinanets_heads_are_quantized_once_for_all_five_levels() -> None:
    prepared, converted = prepared_retinanet(), converted_retinanet()
    heads = [name for name in layers(converted) if name.startswith("head.")]
    assert len(heads) == 10
    seen = {
        int(module.num_batches)
        for name, module in prepared.named_modules()
        if isinstance(module, Observer) and name.startswith("head.")
    }
    assert seen == {3 * 5}


def test_retinanets_report_says_what_stays_in_python_and_why() -> None:
    untraced = fxquant.report(converted_retinanet()).untraced
    assert [each.path for each in untraced] == [
        "",
        "anchor_generator",
        "head",
        "head.classification_head",
        "head.regression_head",
        "transform",
    ]
    assert untraced[0].reason.startswith("a loop over tensors (retinanet.py:")
    assert untraced[3].reason.endswith("layers in it that stand alone: 1")


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_retinanets_copies_give_the_same_boxes(way: str) -> None:
    for model in (prepared_retinanet(), converted_retinanet()):
        twin = COPIES[way](model)
        with torch.no_grad():
            for one, other in zip(model(PHOTOS), twin(PHOTOS), strict=True):
                assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert fxquant.text(twin) == fxquant.text(model)


@pytest.mark.slow
def test_retinanet_learns_roundings() -> None:
    recipe = Recipe.adaround(
        steps=5, samples=2, pool_rows=512, rules=[Rule("head.*.bbox_reg", weights=8)]
    )
    converted = fxquant.quantize(build("small_retinanet").eval(), [PHOTOS], recipe)
    assert all(layer.rounding is not None for layer in layers(converted).values())
    bits = layers(converted)["head.traced.regression_head.bbox_reg"].weight_spec.bits
    assert bits == 8
    assert all(torch.isfinite(value).all() for value in raw_outputs(converted).values())


class Tagged(nn.Conv2d):
    tag = "of the class"

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__(inputs, outputs, side)
        self.mark = "of the layer"


def facts_of(layer: Any) -> list[Any]:
    """Return what code around a layer may ask of it."""
    names = [*layer.__constants__, "tag", "mark"] if isinstance(layer, nn.Conv2d) else []
    names += ["kernel_size", "out_channels"] if hasattr(layer, "groups") else ["in_features"]
    facts = [getattr(layer, name, None) for name in names]
    tensors = [layer.weight, layer.bias]
    return [*facts, *((each.shape, each.dtype, each.device) for each in tensors)]


@needs_int8
@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Tagged(4, 6, 3), (4, 4, 5, 5)),
        (lambda: nn.Conv1d(4, 4, 3, 2, 1, groups=2), (4, 4, 9)),
        (lambda: nn.Linear(4, 6), (4, 4)),
    ],
    ids=["subclass", "grouped", "linear"],
)
def test_layers_answer_what_code_around_them_asks_in_every_stage(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    asked: list[list[Any]] = []

    def forward(m: Any, x: Tensor) -> Any:
        asked.append(facts_of(m.alone))
        return m.alone(x) + m.inside(x)

    model = Guarded(forward, alone=make(), inside=nn.Sequential(make(), nn.ReLU())).eval()
    x = torch.randn(shape)
    model(x)
    prepared = fxquant.calibrate(fxquant.prepare(model), [x])
    converted = fxquant.convert(prepared)
    for each in (converted, fxquant.lower(converted), fxquant.to_qdq(converted)):
        each(x)
        part: Any = each.inside[0]  # type: ignore[index]
        assert part.weight.shape == make().weight.shape
        for name in ("kernel_size", "in_channels", "out_features", "output_padding", "groups"):
            assert getattr(part, name, None) == getattr(model.inside[0], name, None)  # type: ignore[index]
    assert all(each == asked[0] for each in asked)
    assert len(asked) >= 5
