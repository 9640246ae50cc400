"""What goes into a tree comes out of it; what should not get in does not."""

import enum
import functools
import json
import math
import operator
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

import fxquant
from fxquant.errors import StorageError
from fxquant.recipe.rule import Rule
from fxquant.recipe.spec import TensorSpec
from fxquant.storage.allowed import Allowed
from fxquant.storage.decoding import Decoder
from fxquant.storage.encoding import Encoder
from fxquant.storage.tensor_blocks import read_tensors, split_into_blocks

Point = namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1


@dataclass(frozen=True)
class Level:
    name: str
    tags: list[str] = field(default_factory=list)


class Slotted:
    __slots__ = ("one", "two")
    one: list[int]


class Counted(nn.Module):
    """A module whose own code must not run when it is loaded."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.randn(size))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: int) -> int:
        return self.size * x


WEIGHTS = "torchvision.models.resnet:ResNet18_Weights"


def double(x: Tensor) -> Tensor:
    return x * 2


CUSTOM = (Point, Color, Level, Slotted, Counted, double)


def through(value: Any, custom: Any = CUSTOM) -> Any:
    """Return `value` after it was JSON and bytes."""
    encoder = Encoder()
    tree = json.loads(json.dumps(encoder.encode(value, "value"), allow_nan=False))
    entries, blocks = split_into_blocks(encoder.tensors, encoder.paths)
    entries = json.loads(json.dumps(entries))
    tensors = read_tensors(entries, list(blocks), blocks.__getitem__, torch.device("cpu"))
    return Decoder(tensors, Allowed(custom)).decode(tree)


def refusal(value: Any) -> str:
    with pytest.raises(StorageError) as caught:
        Encoder().encode(value, "model")
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 10**30, 0.1, -0.0, math.inf, -math.inf, 1j, "é\n\"'", ..., torch.bfloat16,
        torch.strided, torch.channels_last, torch.per_tensor_affine, torch.device("cuda:1"),
        torch.Size([2, 3]),
        range(1, 9, 2), slice(None, 2, None), (), (1, ("a", None)), [1, [2]], {"a": {"b": 1}},
        {1: 2, None: 3, (4, "x"): 5, 0.5: 6}, {3, 1}, frozenset({(1, 2)}),
        OrderedDict(b=1, a=2), Point(1, [2]), Color.RED, InterpolationMode.BILINEAR,
        TensorSpec(bits=4), Rule(nn.Linear, weights=4), fxquant.Recipe.adaround(skip=["fc"]),
        nn.Linear, int, Tensor, Level, torch.relu, F.max_pool2d, F.gelu, operator.add, math.sqrt,
        len, torch.arange, torch.ops.aten.relu.default, torch.ops.aten.add, double,
    ],
    ids=lambda value: str(value).partition(" at 0x")[0],  # one id in all processes
)  # fmt: skip
def test_a_value_comes_back(value: object) -> None:
    restored = through(value)
    assert restored == value
    assert type(restored) is type(value)
    assert repr(restored) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(through(math.nan))


def test_an_order_of_keys_comes_back() -> None:
    for value in ({"b": 1, "a": 2}, {2: 1, 1: 2}, OrderedDict(b=1, a=2)):
        assert list(through(value)) == list(value)


def test_partials_come_back() -> None:
    restored = through(functools.partial(nn.BatchNorm2d, 4, eps=0.1))
    assert (restored.func, restored.args, restored.keywords) == (nn.BatchNorm2d, (4,), {"eps": 0.1})


def test_slots_come_back_and_missing_ones_stay_missing() -> None:
    value = Slotted()
    value.one = [1]
    restored = through(value)
    assert restored.one == [1]
    assert not hasattr(restored, "two")


def test_methods_of_objects_come_back_bound_where_the_caller_allows_the_method() -> None:
    counted = Counted(2)
    owner, method = through([counted, counted.forward], (*CUSTOM, Counted.forward))
    assert method.__self__ is owner
    assert method(3) == 6
    with pytest.raises(StorageError, match=r"load\(path, custom=\[forward\]\)"):
        through([counted, counted.forward])


def test_objects_that_are_reached_twice_are_one() -> None:
    level, shared, tensor = Level("x"), [1], torch.ones(2)
    linear = nn.Linear(2, 2)
    one, other = through([[level, shared, tensor, linear]] * 1 + [[level, shared, tensor, linear]])
    assert all(a is b for a, b in zip(one, other, strict=True))


def test_objects_that_hold_themselves_come_back() -> None:
    level = Level("loop")
    level.tags.append(level)  # type: ignore[arg-type]
    restored = through({"level": level, "seen": weakref.ref(level)})
    assert restored["level"].tags[0] is restored["level"]
    assert restored["seen"]() is restored["level"]


def test_a_module_comes_back_without_running_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = Counted(3).eval()
    before = set(vars(module))
    for name in ("__init__", "__setattr__", "__setstate__"):
        monkeypatch.setattr(Counted, name, lambda *_: pytest.fail("ran"), raising=False)
    restored = through(module)
    assert set(vars(restored)) == before
    assert (restored.size, restored.training) == (3, False)
    assert restored.state_dict().keys() == module.state_dict().keys() == {"weight"}
    assert torch.equal(restored.scratch, module.scratch)


def test_a_recurrent_layer_comes_back() -> None:
    module, x = nn.LSTM(3, 4, 2), torch.randn(5, 1, 3)
    restored = through(module)
    assert torch.equal(restored(x)[0], module(x)[0])
    assert restored._flat_weights[0] is restored.weight_ih_l0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Path("x"), "model.layers[1].attribute is a pathlib.PosixPath, which a file cannot hold"),
        (torch.Generator(), "model.layers[1].attribute is a torch._C.Generator"),
        (SimpleNamespace(a=1), "model.layers[1].attribute is a types.SimpleNamespace"),
        ({"a": [iter([])]}, "model.layers[1].attribute.a[0] is a builtins.list_iterator"),
        ({2: {1j: b"x"}}, "model.layers[1].attribute[2][1j] is a builtins.bytes"),
        (lambda x: x, "model.layers[1].attribute is <function <lambda> at"),
        ([].append, "model.layers[1].attribute is <built-in method append of list"),
        (torch.ones(2).to_sparse(), "model.layers[1].attribute is a tensor of torch.sparse_coo"),
        (torch.ones(2, device="meta"), "is a tensor of torch.strided, torch.float32, on meta"),
        (torch.ones(2, requires_grad=True) * 2, "is a tensor computed with gradients: detach() it"),
        (nn.UninitializedParameter(), "of type torch.nn.parameter.UninitializedParameter"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(value: object, reason: str) -> None:
    model: Any = nn.Module()
    model.layers = [0, SimpleLayer(value)]
    assert reason in refusal(model)


class SimpleLayer(nn.Module):
    def __init__(self, attribute: object) -> None:
        super().__init__()
        vars(self)["attribute"] = attribute


def test_a_hook_of_the_user_is_named_with_its_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(hook)
    assert refusal(model) == (
        "model.0 (Linear) has the hook 'hook' in _forward_hooks, which a file cannot hold: remove "
        "it and register it again behind"
    )


def hook(*_: Any) -> None:
    return None


def test_two_functions_of_one_name_are_refused() -> None:
    def make(number: int) -> Any:
        def function() -> int:
            return number

        return function

    assert "[1] is one of two different tests.storage.test_encoding:" in refusal([make(1), make(2)])


@pytest.mark.parametrize(
    "tree",
    [
        ["object", "fxquant:Nothing", {}],
        ["module", "fxquant:Rule", {}],
        ["region", "fxquant:Rule", {}, []],
        ["namedtuple", "torch.nn.modules.linear:Linear"],
        ["method", ["type", "torch.nn.modules.linear:Linear"], "mro"],
        ["method", ["enum", WEIGHTS, "DEFAULT"], f"{WEIGHTS}.get_state_dict"],
        ["method", ["object", "fxquant:Rule", {}], "fxquant:FirstCalls.begin"],
        ["enum", WEIGHTS, "DEFAULT"],
    ],
)  # fmt: skip
def test_a_tree_that_fxquant_does_not_write_is_refused(tree: Any) -> None:
    with pytest.raises(StorageError):
        Decoder([], Allowed()).decode(tree)


def test_an_object_that_runs_code_at_its_end_is_refused() -> None:
    class Bomb:
        def __del__(self) -> None: ...

    with pytest.raises(StorageError, match="which runs code at its end"):
        Decoder([], Allowed([Bomb])).decode(["object", "x:" + Bomb.__qualname__, {}])
