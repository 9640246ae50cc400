"""Fields have the types that classes declare, and no field hides a method."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import StorageError
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer
from fxquant.modules.quantized_layer import QuantizedConv2d, quantize_layer
from fxquant.numerics.affine import Affine, Grid
from fxquant.recipe.spec import TensorSpec
from fxquant.storage.fields import check_fields, check_made, matches


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, int | None),
        ("x", Literal["x", "y"]), ((1, 2), tuple[int, ...]), ([1, 2], tuple[int, ...]),
        ((1, "a"), tuple[int, str]), ({"a": 1}, dict[str, int]), ({"a": 1}, Mapping[str, float]),
        ({1}, set[int]), ([1], Sequence[int]), (nn.ReLU, type[nn.Module]), (torch.ones(1), Tensor),
        (object(), Any), ((), tuple[int, ...]), (None, None),
    ],
)  # fmt: skip
def test_a_value_matches_its_type(value: object, hint: Any) -> None:
    assert matches(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int), (1, bool), (1.0, int), ("1", int), (None, int), ("z", Literal["x", "y"]),
        (True, Literal[1]), ((1, "a"), tuple[int, ...]), ((1,), tuple[int, str]),
        ({"a": "b"}, dict[str, int]), ({1: 1}, dict[str, int]), ({"a"}, set[int]),
        (nn.ReLU(), type[nn.Module]), (1, Tensor), ([1], dict[str, int]), ("ab", list[str]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_does_not(value: object, hint: Any) -> None:
    assert not matches(value, hint)


def error_of(kind: type, **state: Any) -> str:
    with pytest.raises(StorageError) as caught:
        check_fields(kind, state)
    return str(caught.value)


def test_an_error_says_which_field_has_which_value() -> None:
    assert error_of(Observer, axis="x") == "Observer.axis is 'x': no int | None"
    assert error_of(nn.Linear, forward=len) == (
        "Linear.forward is a builtin_function_or_method: the name of a method"
    )


def test_own_modules_have_the_fields_that_they_declare_and_layers_those_of_their_float_ones() -> (
    None
):
    assert error_of(Observer, more=1) == "Observer.more is 1: a field that the class has not"
    check_fields(QuantizedConv2d, {"name_of_mine": "stem", "stride": (1, 2)})
    assert (
        error_of(QuantizedConv2d, stride=(0, 1))
        == "QuantizedConv2d.stride is a tuple: not positive"
    )
    assert error_of(nn.MaxPool2d, stride=0) == "MaxPool2d.stride is 0: not positive"


def test_a_default_of_a_class_may_be_a_field() -> None:
    class Mine(nn.Module):
        size = 3
        kinds: ClassVar[list[str]] = []

    check_fields(Mine, {"size": 4, "kinds": ["a"]})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_scale": torch.ones(3)}, r"scales of shape \(3,\) and zero-points of \(4,\)"),
        ({"weight_integers": torch.zeros(4, 2, 3, 3)}, "a weight of"),
        ({"weight_integers": torch.full((4, 2, 3, 3), 100, dtype=torch.int8)}, "weights of 4 bits"),
        ({"bias": nn.Parameter(torch.ones(5))}, r"bias of \(5,\), where \(4,\) is right"),
    ],
)
def test_a_layer_whose_tensors_contradict_it_is_refused(
    changes: dict[str, Tensor], reason: str
) -> None:
    spec = TensorSpec(bits=4, symmetric=True, per_channel=True)
    layer = quantize_layer(nn.Conv2d(2, 4, 3), spec)
    check_made(layer)
    for name, value in changes.items():
        setattr(layer, name, value)
    with pytest.raises(ValueError, match=reason):
        check_made(layer)


def test_a_quantizer_whose_grid_is_none_is_refused() -> None:
    affine = Affine(torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), Grid(0, 255))
    check_made(FakeQuantize(affine, TensorSpec(), 30.0))
    for broken in (
        Affine(torch.tensor(0.0), affine.zero_point, affine.grid),
        Affine(affine.scale, torch.tensor(300, dtype=torch.int32), affine.grid),
        Affine(affine.scale, affine.zero_point, Grid(255, 0)),
        Affine(torch.ones(2), torch.zeros(2, dtype=torch.int32), affine.grid),
    ):
        with pytest.raises(ValueError, match=r"scales|zero-points|grid"):
            check_made(FakeQuantize(broken, TensorSpec(), 30.0))
