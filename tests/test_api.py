"""prepare → calibrate → convert as a user runs it, and what bad input gets."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import CalibrationError, CaptureError, PassError, Recipe, RecipeError
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from tests.helpers import whole


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.dropout(x.mean(dim=(2, 3))))  # type: ignore[no-any-return]


def small_net() -> SmallNet:
    torch.manual_seed(0)
    net = SmallNet()
    net(torch.randn(64, 3, 8, 8))  # statistics that are not 0 and 1
    return net


def images(num: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantized_net(recipe: Recipe | str | None = None) -> torch.fx.GraphModule:
    return whole(fxquant.quantize(small_net().eval(), [images()], recipe))


def test_the_caller_keeps_its_model_as_it_was_train_mode_included() -> None:
    net = small_net().train()
    before = copy.deepcopy(net.state_dict())
    prepared = fxquant.prepare(net)
    fxquant.convert(fxquant.calibrate(prepared, [images()]))
    assert net.training
    assert all(module.training for module in net.modules())
    assert not prepared.training
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.conv.weight.requires_grad


def test_prepared_computes_what_the_float_model_computes() -> None:
    net = small_net().eval()
    torch.testing.assert_close(fxquant.prepare(net)(images()), net(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [(8, 8, 35.0), (8, 16, 40.0), (8, None, 40.0), (4, 8, 12.0)])
def test_converted_is_close_to_the_float_model(bits: tuple[int, int | None, float]) -> None:
    weight_bits, activation_bits, least = bits
    recipe = Recipe.aciq(weight_bits=weight_bits, activation_bits=activation_bits)
    net = small_net().eval()
    assert sqnr(net(images()), quantized_net(recipe)(images())) > least


def test_eight_bits_is_the_default_and_names_are_recipes() -> None:
    default, named = quantized_net(), quantized_net("aciq")
    assert torch.equal(default(images()), named(images()))
    layer = default.get_submodule("conv")
    assert isinstance(layer, QuantizedLayer)
    assert layer.weight_spec.bits == 8
    minmax = quantized_net("minmax").get_submodule("quantizers.x")
    assert isinstance(minmax, FakeQuantize)
    assert minmax.spec.range == "minmax"


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x,
        lambda x: (x, "label"),
        lambda x: [x],
        lambda x: {"x": x},
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_calibrate_takes_batches_of_the_usual_kinds(batch: Callable[[Tensor], object]) -> None:
    prepared = fxquant.prepare(small_net())
    by_loop = copy.deepcopy(prepared)
    assert fxquant.calibrate(prepared, [batch(images())]) is prepared
    by_loop(images())
    assert torch.equal(fxquant.convert(prepared)(images()), fxquant.convert(by_loop)(images()))


def test_calibrate_takes_a_forward_and_a_generator() -> None:
    prepared = fxquant.prepare(small_net())
    fxquant.calibrate(
        prepared, ((n, images(n)) for n in (2, 3)), forward=lambda model, batch: model(batch[1])
    )
    assert prepared.get_buffer("observers.x.num_batches") == 2


def test_ranges_do_not_depend_on_how_images_are_batched() -> None:
    x = images(12)
    recipe = Recipe.aciq(bias_correction=False)
    whole = fxquant.quantize(small_net(), [x], recipe)
    parts = fxquant.quantize(small_net(), list(torch.split(x, 5)), recipe)
    for name, buffer in whole.named_buffers():
        assert torch.allclose(buffer.double(), parts.get_buffer(name).double(), rtol=1e-6), name


def test_calibration_memory_does_not_grow_with_the_number_of_batches() -> None:
    prepared = fxquant.prepare(small_net())
    before = sum(buffer.nbytes for buffer in prepared.buffers())
    fxquant.calibrate(prepared, (images() for _ in range(50)))
    assert sum(buffer.nbytes for buffer in prepared.buffers()) == before


def test_a_prepared_model_s_statistics_load_into_a_fresh_one() -> None:
    prepared = fxquant.calibrate(fxquant.prepare(small_net()), [images()])
    fresh = fxquant.prepare(small_net())
    fresh.load_state_dict(prepared.state_dict())
    assert torch.equal(fxquant.convert(fresh)(images()), fxquant.convert(prepared)(images()))


@pytest.mark.parametrize("stage", ["prepared", "converted"])
def test_deepcopy_and_pickle_keep_outputs_text_and_report(stage: str) -> None:
    model = fxquant.calibrate(fxquant.prepare(small_net()), [images()])
    if stage == "converted":
        model = fxquant.convert(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images()), model(images()))
        assert fxquant.text(twin) == fxquant.text(model)
        assert str(fxquant.report(twin)) == str(fxquant.report(model))


def test_an_unpickled_prepared_model_converts_to_the_same() -> None:
    model = fxquant.calibrate(fxquant.prepare(small_net()), [images()])
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(fxquant.convert(twin)(images()), fxquant.convert(model)(images()))


def test_torch_save_is_read_by_a_process_that_never_saw_the_model(tmp_path: Path) -> None:
    quantized = quantized_net()
    torch.save(quantized, tmp_path / "model.pt")
    torch.save(images(), tmp_path / "x.pt")
    code = (
        "import torch; m = torch.load('model.pt', weights_only=False); x = torch.load('x.pt');"
        "torch.save(m(x), 'y.pt')"
    )
    path = Path(fxquant.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": str(path)}
    )
    assert torch.equal(torch.load(tmp_path / "y.pt"), quantized(images()))


def test_state_dict_round_trip_of_a_converted_model() -> None:
    first, second = quantized_net(), fxquant.quantize(small_net(), [images(seed=2)])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer))
    assert torch.equal(first(images()), second(images()))


def test_integer_weights_are_int8_and_on_their_grid() -> None:
    layer = quantized_net(Recipe.aciq(weight_bits=3)).get_submodule("conv")
    assert isinstance(layer, QuantizedLayer)
    assert layer.weight_integers.dtype == torch.int8
    assert layer.weight_integers.min() >= -4
    assert layer.weight_integers.max() <= 3


def test_converted_takes_any_batch_size_and_size_of_image() -> None:
    quantized = quantized_net()
    one = quantized(images(5)[:1])
    torch.testing.assert_close(quantized(images(5))[:1], one)
    assert quantized(torch.randn(2, 3, 17, 9)).shape == (2, 4)


def test_half_and_back_keep_scales_in_float32() -> None:
    quantized = quantized_net().half()
    assert quantized(images().half()).dtype == torch.float16
    assert quantized.get_submodule("conv").weight_scale.dtype == torch.float32
    assert quantized.get_submodule("quantizers.x").scale.dtype == torch.float32
    assert quantized.float()(images()).dtype == torch.float32


def test_train_and_eval_change_flags_only() -> None:
    quantized = quantized_net()
    expected = quantized(images())
    assert torch.equal(quantized.train()(images()), expected)
    assert torch.equal(quantized.eval()(images()), expected)


def test_gradients_reach_the_input() -> None:
    x = images().requires_grad_()
    quantized_net()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_constant_inputs_and_zero_channels_work(value: float) -> None:
    net = small_net().eval()
    net.conv.weight.data[2] = 0
    x = torch.full((4, 3, 8, 8), value)
    quantized = fxquant.quantize(net, [x])
    assert sqnr(net(x), quantized(x)) > 25


def test_a_skipped_layer_stays_float_and_the_report_says_so() -> None:
    quantized = quantized_net(Recipe.aciq(skip=["fc"]))
    assert type(quantized.get_submodule("fc")) is nn.Linear
    assert "left in float by the recipe" in str(fxquant.report(quantized))


def test_example_inputs_tell_ranks_and_check_the_folding() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()).eval()
    prepared = fxquant.prepare(net, example_inputs=torch.randn(4, 6))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in prepared.modules())
    kept = fxquant.prepare(net, example_inputs=(torch.randn(4, 6, 6),))
    assert any(isinstance(module, nn.BatchNorm1d) for module in kept.modules())


class Recurring(nn.Module):
    """Loops over the first axis of a tensor, or over a list: as many times as there are items."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, items: Tensor | list[Tensor]) -> Tensor:
        return torch.stack([self.body(each) for each in items])


@pytest.mark.parametrize("kind", [torch.stack, list], ids=["a tensor", "a list"])
def test_batches_of_other_lengths_than_the_first_are_quantized_without_an_example(
    kind: Callable[[list[Tensor]], Tensor],
) -> None:
    model = Recurring().eval()
    batches = [kind(list(torch.randn(length, 16, 4))) for length in (3, 2, 5)]
    labelled = [(batch, None) for batch in batches]
    quantized = fxquant.quantize(model, labelled)
    assert all(sqnr(model(batch), quantized(batch)) > 30 for batch in batches)
    refused = pytest.raises(CaptureError, match="called with 2 in the place of 3")
    with refused:  # the first batches are gone by then
        fxquant.quantize(model, iter(labelled))
    with refused:
        fxquant.quantize(model, labelled, example_inputs=(batches[0],))


def test_a_linear_batch_norm_pair_folds_at_convert_once_calibration_told_the_rank() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    net[1].running_mean.uniform_(-1, 1)  # type: ignore[operator]
    x = torch.randn(16, 6)
    quantized = fxquant.quantize(net, [x])
    assert not any(isinstance(module, nn.BatchNorm1d) for module in quantized.modules())
    assert sqnr(net(x), quantized(x)) > 30


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class LogNet(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.log(self.conv(x)).relu().mean(dim=(2, 3)))  # type: ignore[no-any-return]


def prepared_net() -> torch.fx.GraphModule:
    return whole(fxquant.prepare(small_net()))


BAD_INPUT: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("not a module", lambda: fxquant.prepare(3), CaptureError, "model is an int"),  # type: ignore[arg-type]
    (
        "untraceable",
        lambda: fxquant.prepare(nn.Sequential(nn.Flatten(), Branch())),
        CaptureError,
        r"submodule '1' \(Branch\)\n.*test_api.py:\d+: return x if x.sum\(\) > 0",
    ),
    (
        "nothing",
        lambda: fxquant.prepare(nn.ReLU()),
        CaptureError,
        "ReLU has nothing to quantize: 0",
    ),
    (
        "all skipped",
        lambda: fxquant.prepare(small_net(), Recipe.aciq(skip=["*"])),
        CaptureError,
        "SmallNet has nothing to quantize: 2",
    ),
    (
        "name",
        lambda: fxquant.prepare(small_net(), "gptq"),
        RecipeError,
        "'gptq': choose one of aciq",
    ),
    (
        "rule",
        lambda: fxquant.prepare(small_net(), Recipe.aciq(skip=["layer5.*"])),
        RecipeError,
        r"rule 'layer5.\*' \(#0\) matches no call; names start with: conv, fc",
    ),
    ("twice", lambda: fxquant.prepare(prepared_net()), PassError, "'observers.x' is an Observer"),
    (
        "no data",
        lambda: fxquant.convert(prepared_net()),
        CalibrationError,
        "none of the 3 observed",
    ),
    (
        "empty",
        lambda: fxquant.calibrate(prepared_net(), []),
        CalibrationError,
        "`batches` is empty",
    ),
    (
        "str",
        lambda: fxquant.calibrate(prepared_net(), ["a"]),
        CalibrationError,
        r"batch 0 \('a'\): give tensors",
    ),
    ("float convert", lambda: fxquant.convert(small_net()), PassError, "got a SmallNet"),
    ("float calibrate", lambda: fxquant.calibrate(small_net(), []), PassError, "got a SmallNet"),
    ("converted", lambda: fxquant.convert(quantized_net()), PassError, "got a converted model"),
    ("again", lambda: fxquant.prepare(quantized_net()), PassError, "'conv' is a QuantizedConv2d"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input_gets_an_error_that_says_what_it_was(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_calibration_in_training_mode_would_observe_what_dropout_makes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.Linear(4, 2))
    x = torch.ones(8, 4)
    prepared = fxquant.prepare(model, "minmax").train()
    fxquant.calibrate(prepared, [x, x])
    assert "calibrate: put in eval mode: in training, dropout changes" in caplog.text
    assert torch.equal(fxquant.convert(prepared)(x), fxquant.quantize(model, [x], "minmax")(x))


def test_nan_in_the_input_is_named_and_the_batch_left_out() -> None:
    prepared, clean = prepared_net(), prepared_net()
    bad = images()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        CalibrationError, match="batch 1: NaN or infinity first in the result of 'x'"
    ):
        fxquant.calibrate(prepared, [images(), bad])
    fxquant.calibrate(clean, [images()])
    assert torch.equal(
        prepared.get_buffer("observers.x.counts"), clean.get_buffer("observers.x.counts")
    )
    assert torch.isfinite(fxquant.convert(prepared)(images())).all()


def test_the_call_that_makes_nan_is_named() -> None:
    prepared = fxquant.prepare(LogNet())
    with pytest.raises(
        CalibrationError, match="batch 0: NaN or infinity first in the result of 'log'"
    ):
        fxquant.calibrate(prepared, [images()])


def test_nan_seen_in_a_plain_loop_is_reported_by_convert() -> None:
    prepared = prepared_net()
    prepared(torch.full((2, 3, 8, 8), torch.inf))
    with pytest.raises(CalibrationError, match="NaN or infinity in 'x'"):
        fxquant.convert(prepared)


def test_an_observer_that_saw_nothing_leaves_its_tensor_in_float() -> None:
    prepared = prepared_net()
    fxquant.calibrate(prepared, [images()])
    unseen = prepared.get_submodule("observers.mean")
    assert isinstance(unseen, Observer)
    unseen.num_batches.zero_()
    quantized = fxquant.convert(prepared)
    assert "quantizers.mean" not in dict(quantized.named_modules())
    reasons = [reason for row in fxquant.report(quantized).rows for reason in row.remarks]
    assert any("no floating-point value seen in calibration" in each for each in reasons)
