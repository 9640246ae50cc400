"""lower: whole models on int8 kernels compute what they simulated, wherever and however loaded."""

import copy
import functools
import io
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from benchmarks.capture.torchvision_models import build
from fxquant import LoweringError, PassError, Recipe, Rule, TensorSpec
from fxquant.capture.naming import find_regions
from fxquant.capture.region import Region
from fxquant.graph.operations import data_input
from fxquant.int8 import checked, prepacking
from fxquant.int8.integers import integers_behind, is_quantize
from fxquant.int8.modules import Int8Conv, Int8Layer
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from tests.detectors import BATCHES as PARTIAL_BATCHES
from tests.detectors import assert_equal, detector, losses
from tests.detectors import images as image_list
from tests.detectors import run as run_detector
from tests.helpers import Net, assert_same, graph_text, needs_int8, outputs, refusals, whole

pytestmark = needs_int8

# Name, and how many quantize and dequantize nodes are left: of the image, and on either side of
# what has no integer form, in MobileNetV3 the nine products of squeeze-and-excitation.
TORCHVISION = {
    "resnet18": (1, 0),
    "mobilenet_v2": (1, 0),
    "squeezenet1_1": (1, 0),
    "shufflenet_v2_x0_5": (1, 0),
    "mobilenet_v3_small": (19, 0),
}


@functools.cache
def torchvision_model(name: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a model at 8 bits, random weights, and the same lowered."""
    torch.manual_seed(0)
    quantized = whole(fxquant.quantize(build(name), [torch.randn(2, 3, 64, 64)]))
    return quantized, whole(fxquant.lower(quantized))


def conv(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **options})


def residual() -> nn.Module:
    """Return a model that has an addition, a pool, an average, float in between, and a linear."""
    torch.manual_seed(0)
    return Net(
        residual_forward, a=conv(3, 4), b=conv(), c=conv(), pool=nn.MaxPool2d(2), fc=nn.Linear(4, 5)
    )


def residual_forward(m: Any, x: Any) -> Any:
    y = m.pool(m.a(x).relu())
    y = (m.b(y) + y).relu()
    y = m.c(y).sigmoid() * 2
    return m.fc(y.mean((2, 3)))


def images(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 8, 8, generator=generator)


def quantize(
    model: nn.Module | None = None, recipe: Recipe | None = None, x: Tensor | None = None
) -> fx.GraphModule:
    model, x = residual() if model is None else model, images() if x is None else x
    return whole(fxquant.quantize(model, [x], recipe))


def modules_of(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", TORCHVISION)
def test_models_work_on_integers_from_layer_to_layer(name: str) -> None:
    quantized, lowered = torchvision_model(name)
    assert modules_of(lowered, QuantizedLayer) == modules_of(lowered, FakeQuantize) == []
    assert len(modules_of(lowered, Int8Layer)) == len(modules_of(quantized, QuantizedLayer))
    nodes = list(lowered.graph.nodes)
    assert not any(
        is_quantize(lowered, node) and integers_behind(data_input(node)) for node in nodes
    )
    floats = sum(integers_behind(node) is not None for node in nodes)
    assert (sum(is_quantize(lowered, node) for node in nodes), floats) == TORCHVISION[name]
    added = [each for each in lowered.modules() if isinstance(each, Int8Conv) and each.other]
    assert not any(each.keep_other for each in added)
    assert refusals(lowered) == {}


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_are_those_of_the_simulation(name: str, batch: int) -> None:
    quantized, lowered = torchvision_model(name)
    x = torch.randn(batch, 3, 64, 64)
    # 130 dB, float32, unless a value lies half-way between two integers: one that is a step off
    # makes others differ in all layers behind it.
    assert sqnr(outputs(quantized, x), outputs(lowered, x)) > 30


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.minmax(),
        Recipe.aciq(),
        Recipe.aciq(weight_bits=4),
        Recipe.minmax(weight_bits=4, activation_bits=4),
        Recipe.minmax(weight_bits=2, activation_bits=2),
        Recipe(weights=TensorSpec(symmetric=True), activations=TensorSpec(symmetric=True, bits=7)),
        Recipe.adaround(steps=5, samples=4),
        Recipe.minmax(bias_correction=True),
        Recipe.minmax(logits=TensorSpec()),
        Recipe.minmax(skip=["b"]),
        Recipe.minmax(rules=(Rule("b", weights=None),)),
    ],
    ids=str,
)
def test_lowers_what_any_recipe_makes(recipe: Recipe) -> None:
    quantized = quantize(recipe=recipe)
    lowered = fxquant.lower(quantized)
    for batch in (4, 1):
        assert_same(outputs(lowered, images(batch)), outputs(quantized, images(batch)))
    assert modules_of(lowered, QuantizedLayer) == []


def test_the_text_tells_what_works_on_integers() -> None:
    lines = graph_text(fxquant.lower(quantize())).splitlines()
    callees = [line.partition("(")[0] for line in lines]
    assert callees == [
        "x = input", "quantize = kernels.quantize", "a = self.a", "pool = kernels.max_pool2d",
        "b = self.b", "c = self.c", "sigmoid = c.sigmoid",
        "mul = operator.mul", "quantize_3 = kernels.quantize", "mean = kernels.average",
        "fc = self.fc", "return fc",
    ]  # fmt: skip


def test_the_quantized_model_stays_as_it_was() -> None:
    quantized = quantize()
    text, expected = fxquant.text(quantized), outputs(quantized, images())
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    modules = list(quantized.modules())
    lowered = fxquant.lower(quantized, images())
    assert fxquant.text(quantized) == text
    assert list(quantized.modules()) == modules
    assert quantized.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in quantized.state_dict().items())
    assert torch.equal(outputs(quantized, images()), expected)
    shared = {id(tensor) for tensor in quantized.buffers()}
    assert not any(id(tensor) in shared for tensor in lowered.buffers())


def test_inputs_stay_as_they_were() -> None:
    lowered, x = fxquant.lower(quantize()), images()
    before = x.clone()
    with torch.no_grad():
        lowered(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("example", [images(), (images(),), {"x": images()}], ids=type)
def test_example_inputs_pack_the_weights(example: Any) -> None:
    lowered = fxquant.lower(quantize(), example)
    layers = [module for module in lowered.modules() if isinstance(module, Int8Layer)]
    assert len(layers) == 4
    assert all(layer.weight_integers in prepacking._PACKED for layer in layers)
    assert not any(
        module.weight_integers in prepacking._PACKED
        for module in fxquant.lower(quantize()).modules()
        if isinstance(module, Int8Layer)
    )


def by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


DUPLICATES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch,
    "twice": lambda model: by_torch(copy.deepcopy(by_torch(model))),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_copies_and_pickles_are_the_same_model(name: str) -> None:
    lowered = fxquant.lower(quantize())
    duplicate = DUPLICATES[name](lowered)
    assert fxquant.text(duplicate) == fxquant.text(lowered)
    assert torch.equal(outputs(duplicate, images()), outputs(lowered, images()))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_pickles_of_torchvision_models_are_the_same_model(name: str) -> None:
    _, lowered = torchvision_model(name)
    duplicate = pickle.loads(pickle.dumps(lowered))
    x = torch.randn(1, 3, 64, 64)
    assert fxquant.text(duplicate) == fxquant.text(lowered)
    assert torch.equal(outputs(duplicate, x), outputs(lowered, x))


def test_lowers_a_model_that_was_pickled() -> None:
    quantized = quantize()
    expected = fxquant.lower(quantized)
    lowered = fxquant.lower(pickle.loads(pickle.dumps(quantized)))
    assert fxquant.text(lowered) == fxquant.text(expected)
    assert torch.equal(outputs(lowered, images()), outputs(expected, images()))


@pytest.mark.slow
def test_another_process_reads_what_was_saved_and_what_was_exported(tmp_path: Path) -> None:
    lowered = fxquant.lower(quantize(nn.Sequential(conv(3), nn.ReLU(), nn.MaxPool2d(2), conv())))
    x = images()
    torch.save(lowered, tmp_path / "model.pt")
    with torch.no_grad():
        exported = torch.export.export(lowered, (x,), strict=False)
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.save((x, outputs(lowered, x)), tmp_path / "expected.pt")
    code = """
import torch
import fxquant
x, expected = torch.load("expected.pt")
saved = torch.load("model.pt", weights_only=False)
exported = torch.export.load("model.pt2").module()
for model in (saved, exported):
    assert torch.equal(model(x), expected)
assert "kernels.max_pool2d(" in fxquant.text(saved)
"""
    path = str(Path(fxquant.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_has_no_kernel_stays_and_is_named() -> None:
    model = nn.Sequential(
        conv(3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU(), conv(padding_mode="reflect"),
        nn.ReLU(), conv(),
    )  # fmt: skip
    quantized = quantize(model)
    lowered = whole(fxquant.lower(quantized))
    assert modules_of(lowered, Int8Layer) == ["0", "6"]
    assert modules_of(lowered, QuantizedLayer) == ["2", "4"]
    assert refusals(lowered) == {
        "_2": ("not lowered: there is no int8 kernel for transposed convolutions",),
        "_4": ("not lowered: there is no int8 kernel for padding_mode='reflect'",),
    }
    assert_same(outputs(lowered, images()), outputs(quantized, images()))


WRONG_IN_ONEDNN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "EEGNet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, (1, 32), padding=(0, 16)),
            nn.Conv2d(8, 16, (12, 1), groups=8), nn.ELU(),
            nn.Conv2d(16, 16, (1, 16), padding=(0, 8), groups=16), nn.Conv2d(16, 16, 1), nn.ELU(),
        ),
        (2, 1, 12, 64),
    ),
    "spectrogram": (
        lambda: nn.Sequential(nn.Conv2d(1, 16, (3, 80), (1, 2)), nn.ReLU(), nn.Conv2d(16, 4, 1)),
        (2, 1, 8, 80),
    ),
    "padding beyond the kernel": (
        lambda: nn.Sequential(conv(3, 32), nn.Conv2d(32, 32, 1, (1, 3), (4, 0), groups=32)),
        (2, 3, 15, 33),
    ),
    "3-D on one plane": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 8, 3, padding=1, groups=4)
        ),
        (2, 2, 1, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_IN_ONEDNN)
def test_layers_that_onednn_computes_wrongly_are_right(name: str) -> None:
    make_model, shape = WRONG_IN_ONEDNN[name]
    model, x = make_model(), torch.randn(shape)
    quantized = quantize(model, x=x)
    for verify in (True, False):
        lowered = whole(fxquant.lower(quantized, verify=verify))
        assert modules_of(lowered, QuantizedLayer) == []
        assert refusals(lowered) == {}
        # Integers half-way between two may go either way.
        assert sqnr(outputs(quantized, x), outputs(lowered, x)) > 40


def test_without_verification_no_kernel_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: Any) -> str | None:
        raise AssertionError("nothing is to be checked")

    quantized, x = quantize(), images()
    expected = outputs(fxquant.lower(quantized), x)
    checked._ARRANGEMENTS.clear()
    checked._chosen.cache_clear()
    monkeypatch.setattr(checked, "_why_wrong", check)
    lowered = fxquant.lower(quantized, verify=False)
    for duplicate in (lowered, copy.deepcopy(lowered), pickle.loads(pickle.dumps(lowered))):
        assert torch.equal(outputs(duplicate, x), expected)
    with pytest.raises(AssertionError, match="nothing is to be checked"):
        fxquant.lower(quantized)


def test_values_changed_in_place_are_seen() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        z = m.b(y)
        F.relu_(y)  # the result is dropped: `y` is read as it is then
        return z + m.c(y)

    model = Net(function, a=conv(3), b=conv(), c=conv())
    quantized = quantize(model)
    lowered = whole(fxquant.lower(quantized))
    assert_same(outputs(lowered, images()), outputs(quantized, images()))
    reason = "not lowered: relu_ changes it in place, and others read it then"
    assert refusals(lowered)["quantizers_a"] == (reason,)


def partly_lowered_model() -> nn.Module:
    model = nn.Sequential(conv(3), nn.ConvTranspose2d(4, 4, 1))
    return fxquant.lower(quantize(model))


GIVE = "give what fxquant.convert(prepared) returned"
NO_FORM = "lower: the model has no integer form: "
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: 3, PassError, f"lower: got an int: {GIVE}"),
    "float": (residual, PassError, f"lower: got a Net: {GIVE}"),
    "prepared": (
        lambda: fxquant.prepare(residual()),
        PassError,
        f"lower: got a prepared model: {GIVE}",
    ),
    "lowered": (
        lambda: fxquant.lower(quantize()),
        PassError,
        f"lower: got a model that is lowered already: {GIVE}",
    ),
    "lowered in part": (
        partly_lowered_model,
        PassError,
        f"lower: got a model that is lowered already: {GIVE}",
    ),
    "moments": (
        lambda: quantize(recipe=Recipe.minmax(bias_correction="weights")),
        LoweringError,
        f"{NO_FORM}'a', 'b' and 2 more: corrected moments leave the integers' grid "
        "(bias_correction='weights'): choose bias_correction=True, which corrects the bias",
    ),
    "dynamic": (
        lambda: quantize(recipe=Recipe.minmax(activation_dynamic=True)),
        LoweringError,
        f"{NO_FORM}'quantizers.x', 'quantizers.relu' and 3 more: ranges taken from each batch "
        "(dynamic=True): calibrate them instead",
    ),
    "16 bits": (
        lambda: quantize(recipe=Recipe.minmax(rules=(Rule("fc", activations=16),))),
        LoweringError,
        f"{NO_FORM}'quantizers.mul', 'quantizers.mean': activations of 16 bits: choose 2 to 8",
    ),
    "half": (
        lambda: quantize().half(),
        LoweringError,
        f"{NO_FORM}its layers return torch.float16: call .float() on the model first",
    ),
    "another device": (
        lambda: quantize().to("meta"),
        LoweringError,
        f"{NO_FORM}it is on meta: move it with .cpu()",
    ),
    "two obstacles": (
        lambda: quantize(recipe=Recipe.minmax(activation_dynamic=True)).bfloat16(),
        LoweringError,
        f"{NO_FORM}'quantizers.x', 'quantizers.relu' and 3 more: ranges taken from each batch "
        "(dynamic=True): calibrate them instead; its layers return torch.bfloat16: call .float() "
        "on the model first",
    ),
    "weights only": (
        lambda: quantize(recipe=Recipe.minmax(activation_bits=None)),
        LoweringError,
        "lower: no layer can work on integers: not lowered: its input is in float",
    ),
    "per-channel activations": (
        lambda: quantize(
            nn.Sequential(conv(3), nn.ReLU(), conv()),
            Recipe(
                weights=TensorSpec(symmetric=True), activations=TensorSpec(per_channel=True)
            ),
        ),
        LoweringError,
        "lower: no layer can work on integers: not lowered: it has a scale for each channel; not "
        "lowered: its input is in float",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_a_model_that_has_no_integer_form(kind: str) -> None:
    make_model, error, message = REFUSED[kind]
    with pytest.raises(error) as raised:
        fxquant.lower(make_model())
    assert str(raised.value) == message


def test_refuses_a_backend_that_there_is_not() -> None:
    with pytest.raises(LoweringError) as raised:
        fxquant.lower(quantize(), backend="arm")
    assert str(raised.value) == "lower: backend 'arm': choose one of x86"


def test_refuses_a_machine_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = quantize()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(LoweringError) as raised:
        fxquant.lower(quantized)
    assert str(raised.value) == (
        "lower: no int8 kernels here: the processor is aarch64, not x86-64; the graph of "
        "fxquant.to_qdq(quantized) runs everywhere"
    )
    fxquant.to_qdq(quantized)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: fxquant.prepare(m),
            "prepare: the model is lowered already: 'a' is an Int8Conv; give the float model",
        ),
        (
            lambda m: fxquant.convert(m),
            "convert: got a converted model: give what fxquant.prepare(model) returned",
        ),
        (
            lambda m: fxquant.calibrate(m, [images()]),
            "calibrate: got a converted model: give what fxquant.prepare(model) returned",
        ),
        (
            lambda m: fxquant.to_qdq(m),
            f"to_qdq: got a model that is lowered already: {GIVE}",
        ),
    ],
    ids=["prepare", "convert", "calibrate", "to_qdq"],
)
def test_no_other_step_takes_a_lowered_model(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(PassError) as raised:
        call(fxquant.lower(quantize()))
    assert str(raised.value) == message


def test_a_model_of_regions_is_lowered_region_by_region() -> None:
    quantized = fxquant.quantize(detector(), PARTIAL_BATCHES)
    text = fxquant.text(quantized)
    lowered = fxquant.lower(quantized, (image_list(),))
    assert type(lowered) is type(quantized)
    assert fxquant.text(quantized) == text
    assert modules_of(lowered, QuantizedLayer) == []
    assert list(find_regions(lowered)) == list(find_regions(quantized))
    for number in (4, 1, 7):
        batch = image_list(number, seed=number)
        pairs = run_detector(quantized, batch), run_detector(lowered, batch)
        assert min(losses(*pairs)) > 100  # dB: equal up to float32
    for name in ("deepcopy", "torch.save"):
        duplicate = DUPLICATES[name](lowered)
        assert fxquant.text(duplicate) == fxquant.text(lowered)
        assert_equal(run_detector(duplicate), run_detector(lowered))


def test_code_around_a_region_may_ask_for_the_layer_that_it_was() -> None:
    lowered: Any = fxquant.lower(fxquant.quantize(detector(), PARTIAL_BATCHES))
    scores = lowered.head.scores
    assert isinstance(scores, Region)
    assert scores.weight.dtype == torch.float32
    assert scores.weight.shape == (3, 8, 1, 1)
    assert scores.stride == (1, 1)
    assert scores.bias.shape == (3,)


def test_each_region_may_have_its_own_additions() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.additions = conv(), conv(), 3

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y + F.max_pool2d(y, 3, 1, 1))  # type: ignore[no-any-return]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            for block in (self.first, self.second):
                x = block(x) if x.isfinite().all() else x
            return x

    x = torch.randn(2, 4, 8, 8)
    quantized = fxquant.quantize(Model(), [x])
    lowered: Any = fxquant.lower(quantized)
    assert_same(outputs(lowered, x), outputs(quantized, x))
    assert fxquant.text(lowered).count("self.additions_1.add(") == 2
    assert lowered.first.additions == 3
