"""Models that tests store in one process and compare in another."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn

import fxquant
from fxquant import Recipe
from fxquant.calibration.first_calls import FirstCalls
from fxquant.storage.encoding import MADE_ANEW
from tests.helpers import randomize_batchnorms


class Residual(nn.Module):
    """A whole graph: batch norms, an addition, functional calls, a fixed argument, a constant."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU6())
        self.fc = nn.Linear(8, 5)
        self.register_buffer("offset", torch.arange(5.0), persistent=False)
        self.fc.bias.requires_grad_(False)
        with torch.no_grad():  # as large as what it is added to: else that is added in float
            next(self.body.parameters()).mul_(4)

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = (self.body(y) + y).mean((2, 3))
        y = y.flip(0) if flip else y
        return torch.mul(self.fc(y), 2.0) + self.offset


class Neck(nn.Module):
    """A part that the code around it calls, and asks for an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.out_channels = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()  # type: ignore[no-any-return]


class Detector(nn.Module):
    """A model in parts: a list of images of different sizes, and a head that all levels share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = Neck()
        self.head = nn.Conv2d(8, 2, 1)
        self.sizes = {"levels": (1, 2)}
        self.activation = scaled

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._detect(image[None]) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.stem(image))
        assert x.shape[1] == self.neck.out_channels
        levels = [self.head(x[:, :, ::step, ::step]) for step in self.sizes["levels"]]
        scores = torch.cat([level.flatten(2) for level in levels], dim=2)
        return {"scores": self.activation(scores), "kept": scores[scores > 0]}


def scaled(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * 2


CUSTOM = (Detector, Neck, scaled)
_PYTORCH_2_4 = "ignore:You are using `torch.load`:FutureWarning"  # of its own unpickling
Kind = tuple[Callable[[], nn.Module], Any, Recipe]
KINDS: dict[str, Kind] = {
    "residual": (
        Residual, torch.linspace(-1, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),
        Recipe.aciq(weight_bits=3, rules=[fxquant.Rule("conv", weights=8)]),
    ),
    "learned": (
        Residual, torch.linspace(-1, 2, 8 * 3 * 8 * 8).reshape(8, 3, 8, 8),
        Recipe.adaround(steps=5, weight_bits=4, skip=[nn.Linear]),
    ),
    "dynamic": (
        Residual, torch.linspace(-1, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),
        Recipe.aciq(
            activation_dynamic=True, activation_per_channel=True, bias_correction="weights"
        ),
    ),
    "detector": (
        Detector, [torch.linspace(-1, 2, 3 * 8 * n).reshape(3, 8, n) for n in (8, 9)],
        Recipe.minmax(weight_bits=4),
    ),
    "resnet18": (
        torchvision.models.resnet18, torch.linspace(-1, 2, 3 * 40 * 40).reshape(1, 3, 40, 40),
        Recipe.aciq(),
    ),
    "mobilenet_v2": (
        torchvision.models.mobilenet_v2, torch.linspace(-1, 2, 3 * 40 * 40).reshape(1, 3, 40, 40),
        Recipe.minmax(weight_bits=4),
    ),
    "retinanet": (
        lambda: retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, min_size=64, max_size=96
        ),
        [torch.linspace(0, 1, 3 * 64 * 96).reshape(3, 64, 96)],
        Recipe.aciq(weight_bits=4),
    ),
}  # fmt: skip


def make_prepared(kind: str, seed: int = 0) -> nn.Module:
    """Return a model of that kind, calibrated."""
    make, x, recipe = KINDS[kind]
    torch.manual_seed(seed)
    model = make()
    randomize_batchnorms(model)
    return fxquant.calibrate(fxquant.prepare(model.eval(), recipe), [x])


def describe(model: nn.Module, x: Any) -> dict[str, Any]:
    """Return all that a model and its copy must have in common."""
    with torch.no_grad():
        outputs = model(x)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "outputs": outputs,
        "text": fxquant.text(model),
        "report": str(fxquant.report(model)),
        "modules": {name: _module_facts(each) for name, each in model.named_modules()},
        "tensors": {name: (each.dtype, each.requires_grad) for name, each in tensors.items()},
        "persistent": sorted(model.state_dict()),
        "values": {name: each.detach().clone() for name, each in tensors.items()},
    }


def _module_facts(module: nn.Module) -> tuple[object, ...]:
    numbers = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, str)) and name not in MADE_ANEW
    }
    hooks = [
        hook
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not isinstance(getattr(hook, "__self__", None), FirstCalls)  # these compare no more
    ]
    return type(module).__name__, list(module._modules), numbers, len(hooks)


def assert_same(one: Any, other: Any, where: str = "model") -> None:
    """Compare what `describe` returned, to the bit."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert torch.equal(one.isnan(), other.isnan()), where
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def store(kind: str, folder: Path) -> None:
    """Store a model of that kind in all ways, and what it does."""
    _, x, _ = KINDS[kind]
    prepared = make_prepared(kind)
    for name, model in (("converted", fxquant.convert(prepared)), ("prepared", prepared)):
        fxquant.save(model, folder / f"{name}.fxq")
        torch.save(model, folder / f"{name}.pt")
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(model))
        torch.save(model.state_dict(), folder / f"{name}.state")
        torch.save(describe(model, x), folder / f"{name}.expected")


def check(kind: str, folder: Path) -> None:
    """Compare all that was stored with what it did."""
    _, x, _ = KINDS[kind]
    for name in ("converted", "prepared"):
        expected = torch.load(folder / f"{name}.expected", weights_only=False)
        assert_same(describe(_load(folder, name), x), expected, f"{kind} {name}")
        del expected["modules"]  # fx and pickle give containers another type and order
        for read in (_load, _torch_load, _unpickle):
            for copied in (read(folder, name), copy.deepcopy(read(folder, name))):
                found = describe(copied, x)
                del found["modules"]
                assert_same(found, expected, f"{kind} {name} by {read.__name__}")
    expected = torch.load(folder / "converted.expected", weights_only=False)["outputs"]
    with torch.no_grad():
        loaded = _load(folder, "prepared")
        assert_same(fxquant.convert(loaded)(x), expected, f"{kind} loaded and converted")
        fresh = make_prepared(kind, seed=1)
        converted = fxquant.convert(fresh)
        converted.load_state_dict(torch.load(folder / "converted.state", weights_only=True))
        assert_same(converted(x), expected, f"{kind} from the state dict")
        fresh.load_state_dict(torch.load(folder / "prepared.state", weights_only=True))
        if kind != "learned":  # its inputs are not in a state dict
            assert_same(fxquant.convert(fresh)(x), expected, f"{kind} from the prepared state dict")


def check_in_fresh_process(kinds: Sequence[str], folder: Path) -> None:
    """Store models of these kinds, and let another process compare."""
    for kind in kinds:
        (folder / kind).mkdir()
        store(kind, folder / kind)
    root = Path(__file__).parents[1]
    code = f"""
import pathlib, torch
from tests.stored_models import check
torch.set_num_threads(1)
for kind in {list(kinds)}:
    check(kind, pathlib.Path({str(folder)!r}, kind))
"""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-W", _PYTORCH_2_4, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def _load(folder: Path, name: str) -> nn.Module:
    return fxquant.load(folder / f"{name}.fxq", custom=CUSTOM)


def _torch_load(folder: Path, name: str) -> nn.Module:
    model = torch.load(folder / f"{name}.pt", weights_only=False)
    assert isinstance(model, nn.Module)
    return model


def _unpickle(folder: Path, name: str) -> nn.Module:
    model = pickle.loads((folder / f"{name}.pickle").read_bytes())
    assert isinstance(model, nn.Module)
    return model
