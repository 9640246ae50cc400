"""A file holds the model, all of it, and little else; saving it loses nothing."""

import copy
import gc
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.fx import graph_module

import fxquant
from fxquant import CaptureError, Recipe, StorageError
from fxquant.calibration.input_keeper import InputKeeper, find_keeper
from fxquant.reporting.table import Report
from tests.stored_models import CUSTOM, Detector, make_prepared


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = torch.relu(self.fc(x))
        return y if mask is None else y * mask


def quantized(bits: int = 4, model: nn.Module | None = None, x: Tensor | None = None) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)) if model is None else model
    batch = torch.randn(8, 4) if x is None else x
    return fxquant.quantize(model, [batch], Recipe.minmax(weight_bits=bits))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.fxq"


def error_of(path: Path, **options: Any) -> str:
    """Return what loading a file complains of, without the file's name, which it starts with."""
    with pytest.raises(StorageError) as caught:
        fxquant.load(path, **options)
    assert str(caught.value).startswith(f"load: {path}: ")
    return str(caught.value).removeprefix(f"load: {path}: ")


def save_error(model: Any, path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        fxquant.save(model, path)
    return str(caught.value).removeprefix("save: ")


# What is kept.


def test_a_file_is_read_by_its_path_as_text_or_object(path: Path) -> None:
    model, x = quantized(), torch.randn(2, 4)
    fxquant.save(model, str(path))
    for name in (str(path), path):
        assert torch.equal(fxquant.load(name)(x), model(x))


def test_the_same_model_gives_the_same_file(path: Path) -> None:
    model = quantized()
    contents = []
    for each in (model, copy.deepcopy(model)):
        fxquant.save(each, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_saving_leaves_the_model_as_it_is(path: Path) -> None:
    model, x = make_prepared("detector"), [torch.randn(3, 9, 9)]
    stem = model.get_submodule("stem")
    before, hooks = copy.deepcopy(model.state_dict()), len(stem._forward_pre_hooks)
    fxquant.save(model, path)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert len(stem._forward_pre_hooks) == hooks
    fxquant.convert(model)(x)


def test_a_model_that_was_loaded_is_saved_to_the_same_file(path: Path) -> None:
    fxquant.save(quantized(), path)
    first = path.read_bytes()
    fxquant.save(fxquant.load(path), path)
    assert path.read_bytes() == first


def test_arguments_that_tracing_fixed_stay_fixed(path: Path) -> None:
    model, x = quantized(model=Masked()), torch.randn(2, 4)
    fxquant.save(model, path)
    loaded = fxquant.load(path)
    assert torch.equal(loaded(x, None), model(x))
    with pytest.raises(CaptureError, match="argument 'mask' fixed at None"):
        loaded(x, torch.ones(2))
    fxquant.trace(nn.Sequential(nn.ReLU()))  # tracing still works


def test_a_prepared_model_goes_on_where_it_was(path: Path) -> None:
    prepared = make_prepared("learned")
    fxquant.save(prepared, path)
    loaded, more = fxquant.load(path), torch.randn(4, 3, 8, 8)
    for model in (prepared, loaded):
        fxquant.calibrate(model, [more])
    kept = [find_keeper(model) for model in (prepared, loaded)]
    assert all(isinstance(keeper, InputKeeper) and keeper.num_samples == 12 for keeper in kept)
    one, other = fxquant.convert(prepared), fxquant.convert(loaded)
    assert torch.equal(one(more), other(more))


def test_a_report_with_a_reference_can_be_made_of_loaded_models(path: Path) -> None:
    prepared, x = make_prepared("residual"), torch.randn(2, 3, 8, 8)
    models = [fxquant.convert(prepared), prepared]
    reports: list[Report] = []
    for _ in range(2):
        reports.append(fxquant.report(models[0], reference=models[1], batches=[x]))
        for number, model in enumerate(models):
            fxquant.save(model, path)
            models[number] = fxquant.load(path)
    assert str(reports[0]) == str(reports[1])


def test_hooks_that_are_registered_later_replace_none(path: Path) -> None:
    fxquant.save(make_prepared("detector"), path)
    torch.utils.hooks.RemovableHandle.next_id = 0  # as in a fresh process
    loaded: Any = fxquant.load(path, custom=CUSTOM)
    number = len(loaded.stem._forward_pre_hooks)
    for _ in range(50):
        loaded.stem.register_forward_pre_hook(lambda *_: None)
    assert len(loaded.stem._forward_pre_hooks) == number + 50


@pytest.mark.parametrize("bits", [8, 4])
def test_memory_formats_are_kept(bits: int, path: Path) -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    model = quantized(bits, net.to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8))
    fxquant.save(model, path)
    loaded, x = fxquant.load(path), torch.randn(2, 3, 8, 8)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].stride() == tensor.stride(), name
    weight: Any = model.get_submodule("0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded(x), model(x))


def test_modes_and_gradients_are_kept(path: Path) -> None:
    model: Any = quantized()
    model.get_submodule("1").train()
    model.get_submodule("0").bias.requires_grad_(False)
    fxquant.save(model, path)
    loaded = fxquant.load(path)
    assert [loaded.get_submodule(name).training for name in ("0", "1")] == [False, True]
    assert not loaded.get_parameter("0.bias").requires_grad
    assert loaded.get_parameter("2.bias").requires_grad


@pytest.mark.parametrize("form", [fxquant.lower, fxquant.to_qdq])
def test_a_lowered_model_is_kept(form: Callable[[nn.Module], nn.Module], path: Path) -> None:
    try:
        model = form(fxquant.convert(make_prepared("residual")))
    except fxquant.LoweringError as error:
        pytest.skip(str(error))
    fxquant.save(model, path)
    loaded, x = fxquant.load(path), torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert fxquant.text(loaded) == fxquant.text(model)


def test_half_precision_is_kept(path: Path) -> None:
    model, x = quantized().to(torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16)
    fxquant.save(model, path)
    assert torch.equal(fxquant.load(path)(x), model(x))


def test_tensors_go_to_the_device_that_is_asked_for(path: Path) -> None:
    fxquant.save(quantized(), path)
    loaded = fxquant.load(path, map_location="meta")
    assert {each.device.type for each in loaded.state_dict().values()} == {"meta"}


# PyTorch 2.7's lint knows no weights that are computed.
_READS_WEIGHT = pytest.mark.filterwarnings("ignore:.*does not reference an nn.Module:UserWarning")


class Reads(nn.Module):
    """A forward that asks for parts of results, types of results, and a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.to(self.fc.weight.dtype)).to(self.fc.weight.device)
        best, order = y.max(1), torch.sort(y, 1)
        least = torch.finfo(y.dtype).min
        scaled = y * self.fc.weight.norm() / self.fc.weight.shape[0]
        kept = best.values[:, None] + order.values * (order.indices + best.indices[:, None])
        return torch.maximum(scaled + kept, torch.full_like(y, least))


@_READS_WEIGHT
@pytest.mark.parametrize("bits", [8, 4])
def test_what_forwards_read_of_results_and_layers_is_kept(bits: int, path: Path) -> None:
    model, x = quantized(bits, Reads()), torch.randn(3, 4)
    fxquant.save(model, path)
    assert torch.equal(fxquant.load(path)(x), model(x))


@_READS_WEIGHT
def test_what_a_lowered_forward_reads_is_kept(path: Path) -> None:
    converted, x = quantized(8, Reads()), torch.randn(3, 4)
    for form in (fxquant.lower, fxquant.to_qdq):
        try:
            model = form(converted)
        except fxquant.LoweringError as error:
            pytest.skip(str(error))
        fxquant.save(model, path)
        assert torch.equal(fxquant.load(path)(x), model(x))


def test_saving_and_loading_leave_no_sources_of_graphs(path: Path) -> None:
    model, sizes = quantized(), list[int]()
    for _ in range(4):
        for _ in range(5):
            fxquant.save(model, path)
            fxquant.load(path)
        gc.collect()  # modules of graphs hold themselves
        sizes.append(len(graph_module._loader.eval_cache))
    assert sizes[-1] <= sizes[0]


# One's own classes.


def test_ones_own_classes_are_named_when_saving_and_needed_when_loading(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.save(make_prepared("detector"), path)
    assert caplog.messages[-1] == (
        f"save: load({str(path)!r}, custom=[Detector, Neck, scaled]) will need them"
    )
    assert error_of(path) == (
        "it names Detector, Neck, scaled, which a file may use only if they are given: if you know "
        "them and trust the file, load(path, custom=[Detector, Neck, scaled])"
    )
    assert "it names scaled, which" in error_of(path, custom=[Detector, CUSTOM[1]])
    assert isinstance(fxquant.load(path, custom=CUSTOM), Detector)


class Bound(nn.Module):
    """Holds a method of its own, and cannot be traced whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.last = self.doubled

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.last(y) if float(y.detach().sum()) > 0 else self.last(-y)

    def doubled(self, x: Tensor) -> Tensor:
        return x * 2


def test_a_bound_method_is_allowed_by_itself(path: Path) -> None:
    model = fxquant.quantize(Bound(), [torch.randn(8, 4)], fxquant.Recipe.minmax(), verify=False)
    fxquant.save(model, path)
    assert "it names Bound.doubled, which" in error_of(path, custom=[Bound])
    loaded = fxquant.load(path, custom=[Bound, Bound.doubled])
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), model(x))


# Saving.


def test_what_is_no_model_is_an_error(path: Path) -> None:
    assert save_error({}, path) == "model is a dict: give a torch.nn.Module"


def test_what_cannot_be_stored_is_said_before_anything_is_written(path: Path) -> None:
    fxquant.save(quantized(), path)
    before = path.read_bytes()
    model: Any = quantized()
    model.get_submodule("0").log = open(os.devnull)  # noqa: SIM115
    assert save_error(model, path) == (
        "model.0.log is a _io.TextIOWrapper, which a file cannot hold: delete it before saving"
    )
    model.get_submodule("0").log.close()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_configuration_of_pytorchs_quantization_is_kept_if_its_classes_are_given(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = quantized()
    model.get_submodule("0").qconfig = ao.default_qconfig
    with caplog.at_level(logging.INFO, "fxquant"):
        fxquant.save(model, path)
    assert "custom=[QConfig, _PartialWrapper, MinMaxObserver]" in caplog.messages[-1]
    custom: list[Any] = [ao.QConfig, type(ao.default_observer), ao.MinMaxObserver]
    loaded: Any = fxquant.load(path, custom=custom)
    assert type(loaded.get_submodule("0").qconfig) is ao.QConfig


def test_all_that_cannot_be_stored_is_said_at_once(path: Path) -> None:
    model: Any = quantized()
    model.get_submodule("0").key = b"secret"
    model.get_submodule("2").lock = threading.Lock()
    model.register_forward_hook(lambda *_: None)
    error = save_error(model, path)
    for place in (
        "model.0.key is a builtins.bytes",
        "model.2.lock is a _thread.lock",
        "has the hook",
    ):
        assert place in error
    assert not path.exists()


def test_what_load_would_refuse_is_not_written(path: Path) -> None:
    model: Any = quantized()
    vars(model.get_submodule("0"))["forward"] = torch.relu
    assert save_error(model, path).startswith(
        "load would refuse it: QuantizedLinear.forward is a builtin_function_or_method: the name of"
    )
    assert not path.exists()


def test_an_interrupted_save_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fxquant.save(quantized(), path)
    before = path.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fxquant.save(quantized(2), path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert save_error(quantized(), path) == (
        f"{path}: cannot be written: [Errno 28] No space left on device: free some space: "
        f"'{path.parent}'"
    )
    assert not list(path.parent.iterdir())


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.fxq"
    assert save_error(quantized(), path).startswith(f"{path}: cannot be written: [Errno 2]")
