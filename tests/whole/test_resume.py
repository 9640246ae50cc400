"""A reconstruction that is stopped in any way goes on where it was, to the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import Recipe, StorageError
from fxquant.rounding.methods import learners
from fxquant.rounding.methods.adaround import learn_rounding
from fxquant.streaming.checkpoint import Checkpoint
from fxquant.whole_files import write_whole
from tests.helpers import whole

LAYERS = 5


def make_model() -> nn.Module:
    torch.manual_seed(0)
    blocks: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(LAYERS - 2):
        blocks += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 36, 10))


def make_data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(16, 3, 6, 6, generator=generator) for _ in range(2)]


def make_recipe(**options: Any) -> Recipe:
    return Recipe.adaround(weight_bits=3, samples=32, steps=60, **options)


def convert(checkpoint: Path | None = None, **options: Any) -> fx.GraphModule:
    return whole(
        fxquant.quantize(make_model(), make_data(), make_recipe(**options), checkpoint=checkpoint)
    )


def state(gm: nn.Module) -> dict[str, Tensor]:
    return dict(gm.state_dict())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


KILLED_AT = [0, 2, LAYERS - 1]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint for each run, named by the layer at which it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    script = f"""
import os, pathlib, signal
from fxquant.streaming.checkpoint import Checkpoint
from tests.whole.test_resume import convert
import torch
torch.set_num_threads(1)
save = Checkpoint.save

def save_and_die(self, number, name, state):
    if number == layer:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, number, name, state)

Checkpoint.save = save_and_die
for layer in {KILLED_AT}:
    child = os.fork()
    if child == 0:
        convert(pathlib.Path({str(folder)!r}, str(layer)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True)
    return folder


@pytest.mark.parametrize("layer", KILLED_AT)
def test_killed_runs_end_bit_for_bit_where_uninterrupted_ones_do(layer: int, killed: Path) -> None:
    folder = killed / str(layer)
    assert len(list(folder.glob("*.pt"))) == layer
    resumed = convert(folder)
    assert_same(state(resumed), state(convert()))
    assert len(list(folder.glob("*.pt"))) == LAYERS
    assert not list(folder.glob("*.tmp"))


def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert(tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("learned again")

    monkeypatch.setattr(learners, "learn_rounding", fail)
    again = convert(tmp_path)
    assert_same(state(again), state(first))
    reports = [str(fxquant.report(gm)) for gm in (first, again)]
    assert reports[0] == reports[1]  # errors, steps and seconds are kept too


def interrupt_at(layer: int, error: BaseException) -> Callable[..., Tensor]:
    """Return `learn_rounding` that raises `error` at its call number `layer`."""
    calls = iter(range(LAYERS))
    original = learn_rounding

    def learn(*arguments: Any) -> Tensor:
        if next(calls) == layer:
            raise error
        return original(*arguments)

    return learn


def test_control_c_stops_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = fxquant.calibrate(fxquant.prepare(model, make_recipe()), make_data())
    with monkeypatch.context() as patch:
        patch.setattr(learners, "learn_rounding", interrupt_at(2, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fxquant.convert(prepared, checkpoint=tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 2
    assert_same(dict(model.state_dict()), before)
    assert_same(state(fxquant.convert(prepared, checkpoint=tmp_path)), state(convert()))


def test_a_full_disk_keeps_the_finished_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, write: Callable[[BinaryIO], object]) -> None:
        if path.name.startswith("0003"):
            raise OSError(28, "No space left on device")
        write_whole(path, write)

    with monkeypatch.context() as patch:
        patch.setattr("fxquant.streaming.checkpoint.write_whole", save)
        with pytest.raises(
            StorageError, match=r"No space left on device.*layers before it are kept"
        ):
            convert(tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 3
    assert_same(state(convert(tmp_path)), state(convert()))


def test_a_second_run_is_refused_while_the_first_one_works(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, {}), pytest.raises(StorageError, match="works in it: wait until"):
        convert(tmp_path)


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "bits": ("the recipe is another", lambda path: fxquant.quantize(
        make_model(), make_data(), Recipe.adaround(weight_bits=2, samples=32, steps=60),
        checkpoint=path)),
    "steps": ("the recipe is another", lambda path: convert(path, learning_rate=0.2)),
    "seed": ("the recipe is another", lambda path: convert(path, seed=1)),
    "weights": ("the model is another", lambda path: fxquant.quantize(
        _shifted(make_model()), make_data(), make_recipe(), checkpoint=path)),
    "data": ("the calibration data is another", lambda path: fxquant.quantize(
        make_model(), make_data()[::-1], make_recipe(), checkpoint=path)),
}  # fmt: skip


def _shifted(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(iter(model.parameters())).add_(1e-3)
    return model


@pytest.mark.parametrize(("message", "run"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_something_else_is_refused(
    message: str, run: Callable[[Path], object], tmp_path: Path
) -> None:
    convert(tmp_path)
    with pytest.raises(StorageError, match=message):
        run(tmp_path)


def test_more_memory_may_be_allowed_in_between(tmp_path: Path) -> None:
    convert(tmp_path, max_bytes=1000)
    convert(tmp_path)
    assert json.loads((tmp_path / "identity.json").read_text())["ranks"] == "1"
