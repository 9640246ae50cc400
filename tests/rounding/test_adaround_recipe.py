"""AdaRound as a user runs it: from `Recipe.adaround` to a report, and what bad input gets."""

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, Recipe, RecipeError, Reconstruction, StorageError
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr


class Net(nn.Module):
    """A residual block between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv(x)))
        x = torch.relu(self.block(x) + x)
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def images(number: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    detail = torch.rand(number, 3, 8, 8, generator=generator)
    return detail + torch.rand(number, 3, 1, 1, generator=generator)


def recipe(**options: Any) -> Recipe:
    options = {"weight_bits": 3, "samples": 64, "steps": 100} | options
    return Recipe.adaround(**options)


def layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: each for name, each in model.named_modules() if isinstance(each, QuantizedLayer)}


@pytest.mark.parametrize("activation_bits", [None, 8, 4])
def test_learned_rounding_beats_nearest_rounding(activation_bits: int | None) -> None:
    model, x = Net().eval(), images()
    chosen = recipe(activation_bits=activation_bits)
    learned = fxquant.quantize(model, torch.split(x, 16), chosen)
    nearest = fxquant.quantize(
        model,
        torch.split(x, 16),
        Recipe(weights=chosen.weights, activations=chosen.activations),
    )
    expected = model(x)
    assert sqnr(expected, learned(x)) > sqnr(expected, nearest(x))
    assert all(layer.rounding is not None for layer in layers(learned).values())


def test_the_report_shows_errors_steps_and_decisions() -> None:
    learned = fxquant.quantize(Net(), torch.split(images(), 16), recipe())
    report = fxquant.report(learned)
    rows = [row for row in report.rows if row.weights]
    assert len(rows) == 3
    for row in rows:
        assert row.rounding is not None
        assert row.rounding.steps == 100
        assert row.rounding.seconds > 0
        assert str(row.rounding) in str(report)
    assert report.tables()[0].values("method").count("adaround") == 3
    assert "method: adaround" in str(report)
    assert "adaround" not in str(fxquant.report(fxquant.quantize(Net(), [images()])))


def test_batches_given_to_convert_override_those_kept() -> None:
    prepared = fxquant.prepare(Net(), recipe())
    fxquant.calibrate(prepared, [torch.rand(16, 3, 8, 8)])
    given = fxquant.convert(prepared, torch.split(images(), 16))
    again = fxquant.convert(prepared, [{"x": part} for part in torch.split(images(), 32)])
    kept = fxquant.convert(prepared)
    integers = [layers(model)["fc"].weight_integers for model in (given, again, kept)]
    assert torch.equal(integers[0], integers[1])
    assert not torch.equal(integers[0], integers[2])


def test_batch_sizes_of_the_loader_change_nothing() -> None:
    models = [
        fxquant.quantize(Net().train(False), torch.split(images(), size), recipe(batch_size=16))
        for size in (1, 16, 64)
        if torch.manual_seed(0)
    ]
    for name, layer in layers(models[0]).items():
        for other in models[1:]:
            assert torch.equal(layers(other)[name].weight_integers, layer.weight_integers)


def test_prepare_convert_and_the_callers_model_leave_each_other_alone() -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    prepared = fxquant.calibrate(fxquant.prepare(model, recipe()), [images()])
    state = copy.deepcopy(prepared.state_dict())
    first, second = fxquant.convert(prepared), fxquant.convert(prepared)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
    for name, value in state.items():
        assert torch.equal(prepared.state_dict()[name], value)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_saving_keeps_the_inputs_and_the_result() -> None:
    prepared = fxquant.calibrate(fxquant.prepare(Net(), recipe()), [images()])
    loaded = pickle.loads(pickle.dumps(prepared))
    expected = fxquant.convert(prepared)
    actual = fxquant.convert(loaded)
    assert torch.equal(actual(images()), expected(images()))
    buffer = io.BytesIO()
    torch.save(expected, buffer)
    buffer.seek(0)
    reloaded = torch.load(buffer, weights_only=False)
    assert fxquant.text(reloaded) == fxquant.text(expected)
    assert str(fxquant.report(reloaded)) == str(fxquant.report(expected))


def test_fewer_samples_than_there_may_be_are_used_and_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.quantize(Net(), [images(10)], recipe(steps=5))
    assert "reconstruction: 10 samples, of 64 at most" in caplog.messages
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_no_samples_is_an_error() -> None:
    prepared = fxquant.prepare(Net(), recipe(activation_bits=None))
    with pytest.raises(CalibrationError, match="nothing to learn roundings from"):
        fxquant.convert(prepared)
    with pytest.raises(CalibrationError, match="convert: `batches` is empty: give at least one"):
        fxquant.convert(prepared, [])


def test_a_batch_with_nan_is_not_learned_from() -> None:
    prepared = fxquant.prepare(Net(), recipe())
    bad = images(4)
    bad[1, 1, 1, 1] = torch.nan
    with pytest.raises(CalibrationError, match="batch 0: NaN"):
        fxquant.calibrate(prepared, [bad])
    fxquant.calibrate(prepared, [images()])
    expected = fxquant.quantize(Net(), [images()], recipe())
    assert len(layers(fxquant.convert(prepared))) == len(layers(expected))


def test_nan_with_weights_only_names_the_layer() -> None:
    bad = images()
    bad[5] = torch.inf
    with pytest.raises(CalibrationError, match="conv: NaN or infinity in its input"):
        fxquant.quantize(Net(), [bad], recipe(activation_bits=None))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_images_and_strange_channels_work(value: float) -> None:
    model = Net().eval()
    with torch.no_grad():
        model.conv.weight[0] = 0
        model.conv.weight[1] *= 1e6
        model.block.weight[:, 2] = 0
    x = torch.full((64, 3, 8, 8), value)
    learned = fxquant.quantize(model, [x], recipe())
    assert torch.isfinite(learned(x)).all()
    assert not layers(learned)["conv"].weight_integers[0].any()
    assert not layers(learned)["block"].weight_integers[:, 2].any()


def test_rules_and_skips_hold() -> None:
    learned = fxquant.quantize(
        Net(), [images()], recipe(skip=["fc"], rules=[fxquant.Rule("block", weights=8)], steps=20)
    )
    assert list(layers(learned)) == ["conv", "block"]
    assert layers(learned)["block"].weight_spec.bits == 8


def test_a_full_disk_while_spilling_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115
    with pytest.raises(StorageError, match=r"No space left on device.*set TMPDIR"):
        fxquant.quantize(Net(), [images()], recipe(max_bytes=1, steps=5))


def test_an_unwritable_checkpoint_folder_is_a_clear_error(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        fxquant.quantize(Net(), [images()], recipe(), checkpoint=tmp_path / "file")


def test_options_go_where_they_belong() -> None:
    made = Recipe.adaround(
        weight_bits=2, steps=7, seed=3, activation_range="aciq", bias_correction=True
    )
    assert made.reconstruction == Reconstruction(steps=7, seed=3)
    assert made.activations is not None
    assert made.weights is not None
    assert (made.activations.range, made.weights.range) == ("aciq", "mse")
    assert made.bias_correction
    assert Recipe.named("adaround") == Recipe.adaround()
    assert Recipe.adaround(activation_bits=None).activations is None


BAD: dict[str, Any] = {
    "steps=0": {"steps": 0},
    "rows='many'": {"rows": "many"},
    "learning_rate=0": {"learning_rate": 0},
    "regularization=-1": {"regularization": -1},
    "warm_start=2": {"warm_start": 2},
    "held_out=0": {"held_out": 0},
    "beta=(20,)": {"beta": (20,)},
    "seed=1.5": {"seed": 1.5},
    "max_bytes=0": {"max_bytes": 0},
    "batch_size=-1": {"batch_size": -1},
}


@pytest.mark.parametrize(("shown", "options"), BAD.items(), ids=BAD)
def test_bad_options_are_errors_that_show_them(shown: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.adaround(**options)
    assert str(caught.value).startswith(f"Reconstruction: {shown}: give ")


def test_measuring_outputs_keeps_no_inputs_and_watches_nothing() -> None:
    prepared = fxquant.calibrate(fxquant.prepare(Net(), recipe(samples=128)), [images()])
    before = copy.deepcopy(prepared.state_dict())
    learned = fxquant.convert(prepared, [images()])
    fxquant.report(learned, reference=prepared, batches=[images()])
    assert "64 of at most 128 samples" in fxquant.text(prepared)
    for name, value in before.items():
        assert torch.equal(prepared.state_dict()[name], value)
