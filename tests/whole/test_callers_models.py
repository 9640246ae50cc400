"""No public function changes what it is given: models of any stage, batches, random numbers.

Not when it returns, and not when it raises midway: bit for bit, down to training flags, hooks,
gradients, buffers and attributes.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Budget, Recipe
from fxquant.int8 import onednn
from fxquant.ladder import Rung

RUNGS = [Rung("min-max", Recipe.minmax()), Rung("ACIQ", Recipe.aciq())]
LEARNED = Recipe.adaround(steps=2, samples=16, batch_size=4)
MIXED = Recipe.mixed(steps=2, average_bits=4)


class State(nn.Module):
    """Writes to all that a forward can write to."""

    calls: Tensor
    mean: Tensor
    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("hidden", torch.zeros(4))
        self.center = nn.Parameter(torch.zeros(4))
        self.number = 0
        self.shapes: list[Any] = []
        self.last: Any = None
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        self.hidden.data.add_(1.0)
        self.center.data.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        self.number += 1
        self.shapes.append(x.shape)
        self.seen["first"] = self.last = x
        return x + self.mean[:, None, None]


class Model(nn.Module):
    """Cannot be traced whole; raises when `calls_left` is 0; writes to its input."""

    calls_left: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.state, self.drop, self.norm = State(), nn.Dropout(0.5), nn.BatchNorm2d(4)
        self.second, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if Model.calls_left is not None:
            Model.calls_left -= 1
            if Model.calls_left < 0:
                raise ValueError("stopped")
        x = self.state(self.first(x.sub_(0.1)))
        return self.fc(self.drop(self.norm(self.second(x))).mean((2, 3)))  # type: ignore[no-any-return]


def trained() -> Model:
    """Return a model in the middle of training: flags of both kinds, gradients, hooks."""
    torch.manual_seed(0)
    model = Model().train()
    model.first[1].eval()
    model.fc.eval()
    model.second.weight.requires_grad_(False)
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    model.register_forward_hook(lambda *_: None)
    model.drop.register_forward_pre_hook(lambda *_: None)
    model.fc.weight.register_hook(lambda gradient: gradient)  # type: ignore[no-untyped-call]
    return model


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 6, 6, generator=generator) for _ in range(4)]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that a model holds: objects as they are, tensors with copies of their values."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = module
        for name, value in vars(module).items():
            inside = copy.copy(value) if isinstance(value, (dict, list, set)) else None
            found[f"{path}.{name}"] = (value, inside)
            held = inside.values() if isinstance(inside, dict) else [value]
            for number, each in enumerate(held):
                if isinstance(each, Tensor):
                    gradient = each.grad.clone() if each.is_leaf and each.grad is not None else None
                    values = (each.detach().clone(), each.requires_grad, gradient)
                    found[f"{path}.{name}[{number}]"] = values
    return found


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(one[key] is other[key] for key in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one is other or (isinstance(one, (bool, int, float, str, set)) and one == other)


class Given:
    """What functions are given, of each stage."""

    def __init__(self) -> None:
        self.data = batches()
        self.float = trained()
        self.prepared = fxquant.calibrate(fxquant.prepare(self.float, LEARNED), self.data)
        self.mixed = fxquant.calibrate(fxquant.prepare(self.float, MIXED), self.data)
        self.quantized = fxquant.convert(self.prepared)
        self.lowered = fxquant.lower(self.quantized) if onednn.why_unavailable() is None else None
        self.again = list(map(torch.clone, self.data))

    def everything(self) -> dict[str, Any]:
        models = {name: each for name, each in vars(self).items() if isinstance(each, nn.Module)}
        shots = {
            f"{stage}: {name}": value
            for stage, model in models.items()
            for name, value in snapshot(model).items()
        }
        data = {f"batch {n}": each.clone() for n, each in enumerate(self.data)}
        return {**shots, **data, "random numbers": torch.get_rng_state()}


def _score(model: nn.Module, x: Tensor) -> float:
    return model.train().eval()(x.clone()).sum().item()  # type: ignore[no-any-return]


FUNCTIONS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "trace": lambda g, data, _: fxquant.trace(g.float),
    "prepare": lambda g, data, _: fxquant.prepare(g.float, example_inputs=next(iter(data))),
    "calibrate": lambda g, data, _: fxquant.calibrate(fxquant.prepare(g.float), data),
    "quantize": lambda g, data, _: fxquant.quantize(g.float, data),
    "quantize, learned": lambda g, data, _: fxquant.quantize(g.float, data, LEARNED),
    "quantize, a forward": lambda g, data, _: fxquant.quantize(
        g.float, ((each, 1) for each in data), forward=lambda model, batch: model(batch[0])
    ),
    "search": lambda g, data, _: fxquant.search(g.float, data, rungs=RUNGS, max_drop=0),
    "search, a metric": lambda g, data, _: fxquant.search(
        g.float, data, rungs=RUNGS, evaluate=lambda model: _score(model, g.again[0])
    ),
    "convert": lambda g, data, _: fxquant.convert(g.prepared),
    "convert, batches": lambda g, data, _: fxquant.convert(g.prepared, data),
    "convert, a budget": lambda g, data, _: fxquant.convert(g.mixed, data),
    "measure_sensitivities": lambda g, data, _: fxquant.measure_sensitivities(
        g.prepared, data, Budget(average_bits=4), batch_size=2
    ),
    "analyze": lambda g, data, _: fxquant.analyze(g.float, data, Recipe.minmax(weight_bits=4)),
    "card": lambda g, data, _: fxquant.card(g.quantized),
    "recipe_of": lambda g, data, _: fxquant.recipe_of(g.quantized),
    "report": lambda g, data, _: fxquant.report(g.quantized),
    "report, float": lambda g, data, _: fxquant.report(
        g.quantized, reference=g.float, batches=data
    ),
    "report, prepared": lambda g, data, _: fxquant.report(
        g.quantized, reference=g.prepared, batches=data
    ),
    "compare, float": lambda g, data, _: fxquant.compare(g.float, g.quantized, data),
    "compare": lambda g, data, _: fxquant.compare(g.prepared, g.quantized, data),
    "compare, lowered": lambda g, data, _: fxquant.compare(g.quantized, g.lowered, data),
    "text": lambda g, data, _: fxquant.text(g.prepared.fc),
    "lower": lambda g, data, _: fxquant.lower(g.quantized, next(iter(data))),
    "to_qdq": lambda g, data, _: fxquant.to_qdq(g.quantized),
    "export_onnx": lambda g, data, to: fxquant.export_onnx(
        g.quantized, to / "model.onnx", next(iter(data))
    ),
    "save": lambda g, data, to: fxquant.save(g.quantized, to / "model.fxq"),
}
OF_NO_MODEL = {"allocate", "frontier", "load"}
NEED_INT8 = {"compare, lowered", "lower"}
RAISE = {"trace", "save", "export_onnx"}
MAY_RAISE = (fxquant.FxquantError, ValueError, OSError)


@pytest.fixture(scope="module")
def given() -> Iterator[Given]:
    with torch.random.fork_rng():
        yield Given()


def test_all_public_functions_are_in_the_table() -> None:
    public = (getattr(fxquant, name) for name in fxquant.__all__)
    functions = {each.__name__ for each in public if inspect.isfunction(each)}
    assert {name.partition(",")[0] for name in FUNCTIONS} == functions - OF_NO_MODEL


def broken(data: list[Tensor]) -> Iterator[Tensor]:
    yield from data[:2]
    raise OSError("the disk is gone")


@pytest.mark.parametrize("ends", [None, 0, 2, 5, "loader"], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_changes_nothing_that_it_is_given(
    given: Given, name: str, ends: Any, tmp_path: Path
) -> None:
    """`ends`: the call of the model that raises; or the loader does; None: nothing does."""
    if name in NEED_INT8 and given.lowered is None:
        pytest.skip(str(onednn.why_unavailable()))
    data = broken(given.data) if ends == "loader" else given.data
    before = given.everything()
    Model.calls_left = ends if isinstance(ends, int) else None
    try:
        FUNCTIONS[name](given, data, tmp_path)
    except MAY_RAISE:
        if ends is None and name not in RAISE:
            raise
    finally:
        Model.calls_left = None
    after = given.everything()
    names = before.keys() | after.keys()
    assert [each for each in names if not is_same(before.get(each), after.get(each))] == []
