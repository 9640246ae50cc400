"""Containers come out of graphs, and go into them, as what they are: `ModelOutput`s, lists."""

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.capture.naming import find_regions
from fxquant.numerics.containers import items_of

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class ModelOutput(OrderedDict[str, Any]):
    """Like that of transformers: fields that are not None are items too."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            if getattr(self, each.name) is not None:
                super().__setitem__(each.name, getattr(self, each.name))

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass
class Output(ModelOutput):
    last: Any = None
    hidden: Any = None
    attentions: Any = None


@dataclass
class Plain:
    a: Any
    b: Any = None


@dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any = 3


@dataclass
class Computed:
    a: Any
    b: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.b = self.a * 2


class Named(NamedTuple):
    a: Any
    b: Any


class Dictionary(dict[str, Any]):
    pass


class Ordered(OrderedDict[str, Any]):
    pass


class Listed(list[Any]):
    pass


class Coupled(tuple[Any, ...]):
    __slots__ = ()


MAKE: dict[str, Callable[[Any, Any], Any]] = {
    "model output": lambda a, b: Output(a, (a, b)),
    "dataclass": lambda a, b: Plain(a, [a, b]),
    "frozen dataclass": Frozen,
    "computed field": lambda a, b: Computed(a),
    "nested dataclass": lambda a, b: Plain([Plain(a), b], {"q": Frozen(b)}),
    "named tuple": Named,
    "tuple": lambda a, b: (a, b),
    "subclass of tuple": lambda a, b: Coupled([a, b]),
    "list": lambda a, b: [a, b],
    "subclass of list": lambda a, b: Listed([a, b]),
    "nested lists": lambda a, b: {"x": [a, [b]], "y": (a, {"z": [b]})},
    "mixed": lambda a, b: [a, None, 3, "text"],
    "dict": lambda a, b: {"a": a, "b": b},
    "keys that are no text": lambda a, b: {0: a, 1: b},
    "subclass of dict": lambda a, b: Dictionary(a=a, b=b),
    "ordered dict": lambda a, b: OrderedDict(a=a, b=b),
    "subclass of ordered dict": lambda a, b: Ordered(a=a, b=b),
    "default dict": lambda a, b: defaultdict(list, a=a, b=b),
    "user dict": lambda a, b: UserDict(a=a, b=b),
}
CUSTOM = [Output, Plain, Frozen, Computed, Named, Dictionary, Ordered, Listed, Coupled]


class Body(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc, self.head = kind, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        a = self.fc(x)
        return MAKE[self.kind](a, self.head(torch.relu(a)))


class Around(nn.Module):
    """Cannot be traced; adds to what it gets, where that can be added to."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        output = self.body(x) if x.shape[0] > 1 else x
        if isinstance(output, list):
            output.append(x)
        elif type(output) is dict:
            output["x"] = x
        return output


def shape_of(value: Any) -> Any:
    """Return a nest of the types in a value, tensors apart."""
    items = items_of(value)
    if items is None:
        return Tensor if isinstance(value, Tensor) else value
    return type(value), {key: shape_of(each) for key, each in items.items()}


def tensors_in(value: Any) -> list[Tensor]:
    items = items_of(value)
    if items is None:
        return [value] if isinstance(value, Tensor) else []
    return [tensor for each in items.values() for tensor in tensors_in(each)]


def check(model: nn.Module, arguments: tuple[Any, ...], path: Path) -> nn.Module:
    """Return `model` quantized; it and all its forms return the same containers, close values."""
    with torch.no_grad():
        expected = model(*arguments)
        prepared = fxquant.prepare(model, example_inputs=arguments)
        fxquant.calibrate(prepared, [arguments], forward=lambda each, batch: each(*batch))
        converted = fxquant.convert(prepared)
        fxquant.save(converted, path)
        loaded = fxquant.load(path, custom=[Body, Around, Reader, Giving, *CUSTOM])
        for each in (prepared, converted, loaded, fxquant.to_qdq(converted)):
            actual = each(*arguments)
            assert shape_of(actual) == shape_of(expected)
            pairs = list(zip(tensors_in(actual), tensors_in(expected), strict=True))
            assert pairs
            assert all((one - other).abs().max() < 0.1 for one, other in pairs)
    return converted


@pytest.mark.parametrize("around", [Around, nn.Sequential], ids=["region", "whole"])
@pytest.mark.parametrize("kind", MAKE)
def test_what_a_graph_returns_is_of_its_class(
    kind: str, around: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    assert find_regions(check(around(Body(kind)).eval(), (X,), tmp_path / "file"))


READ: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "fields": (Output(X, (X, -X)), lambda given: given.last + given.hidden[1]),
    "items": (Output(X, (X, -X)), lambda given: given["last"] + given["hidden"][1]),
    "places": (Output(X, (X, -X)), lambda given: given[0] + given[1][1]),
    "dataclass": (Plain(X, [X, -X]), lambda given: given.a + given.b[1]),
    "frozen dataclass": (Frozen(X, -X), lambda given: given.a + given.b),
    "named tuple": (Named(X, -X), lambda given: given.a + given.b),
    "list": ([X, -X], lambda given: given[0] + given[1]),
    "user dict": (UserDict(a=X, b=-X), lambda given: given["a"] + given["b"]),
}


class Reader(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(4, 4)

    def forward(self, given: Any) -> Any:
        return self.fc(READ[self.kind][1](given)), given


class Giving(nn.Module):
    """Cannot be traced, and calls its body with a container."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, given: Any) -> Any:
        return self.body(given) if torch.is_tensor(given) is False else given


@pytest.mark.parametrize("around", [Giving, nn.Sequential], ids=["region", "whole"])
@pytest.mark.parametrize("kind", READ)
def test_an_argument_may_be_of_any_class(
    kind: str, around: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = around(Reader(kind)).eval()
    assert find_regions(check(model, (READ[kind][0],), tmp_path / "file"))
