"""How batches become the arguments of a graph, cut and regrouped."""

import functools
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CalibrationError, Recipe
from fxquant.calibration.input_keeper import find_keeper, keep_inputs
from fxquant.calling.arguments import (
    arguments_of,
    call_of_batch,
    call_on_batch,
    example_of,
    positional,
)
from fxquant.calling.batching import Batches
from tests.helpers import Several, assert_equal, node

Arguments = tuple[Any, ...]


class Scaled(nn.Module):
    """A model with one input and a default."""

    def forward(self, x: Tensor, scale: float = 2.0) -> Any:
        return x * scale


def with_flag(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a method a keyword of its own, as transformers' decorators do."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **{"flag": True, **kwargs})

    return wrapper


class Decorated(nn.Module):
    """A model whose decorator gives an argument that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @with_flag
    def forward(self, x: Tensor, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        y: Tensor = self.layer(x)
        y = y if mask is None else y * mask
        return y + 1 if flag else y


@pytest.mark.parametrize("kind", ["tensor", "tuple", "with labels", "keywords"])
def test_a_model_is_called_with_what_a_batch_gives_and_no_defaults(kind: str) -> None:
    x, mask = torch.randn(16, 4), torch.ones(16, 4)
    batch: Any = {
        "tensor": x, "tuple": (x,), "with labels": (x, torch.zeros(16)), "keywords": {"x": x},
    }[kind]  # fmt: skip
    model = Decorated()
    quantized = fxquant.quantize(model, [batch, batch], progress=False)
    torch.testing.assert_close(quantized(x), model(x), atol=0.05, rtol=0)
    masked = fxquant.quantize(model, [{"x": x, "mask": mask}], progress=False)
    torch.testing.assert_close(masked(x, mask=mask), model(x), atol=0.05, rtol=0)


def repr_type(value: Any) -> str:
    return type(value).__name__


def test_finds_the_keeper_under_another_name_too() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2)))
    assert find_keeper(gm) is None
    gm.add_module("kept_inputs", nn.Identity())
    keep_inputs(gm, 3)
    assert find_keeper(gm) is gm.get_submodule("kept_inputs_1")


X = torch.arange(12.0).reshape(3, 4)
Y = -X


@pytest.mark.parametrize("batch", [X, (X, Y), [X, "label"], {"x": X}], ids=repr_type)
def test_a_batch_is_the_first_argument_or_names_it(batch: Any) -> None:
    gm = fx.symbolic_trace(Scaled())
    assert_equal(arguments_of(gm, batch, "batch 0"), (X, 2.0))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"y": Y, "x": X}, (X, Y, 2.0, "none")),
        ({"text": None, "x": X, "y": Y, "scale": 0.5}, (X, Y, 0.5, None)),
    ],
    ids=["defaults", "all"],
)
def test_keywords_come_in_the_order_of_the_inputs(batch: Any, expected: Arguments) -> None:
    gm = fx.symbolic_trace(Several())
    node(gm, "x").name = "renamed"  # the arguments keep their names
    assert_equal(positional(gm, batch, "batch 0"), expected)
    assert_equal(arguments_of(gm, batch, "batch 0"), expected)


TWO = {
    "list": [X, Y],
    "tuple": (X, Y),
    "with labels": [X, Y, "label"],
    "a pair with labels": [[X, Y], "label"],
    "a mapping that is no dict": UserDict(x=X, y=Y),
}


class Branching(Several):
    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0, text: Any = "none") -> Any:
        return super().forward(x, y, scale, text) if x.shape[0] > 1 else x


@pytest.mark.parametrize("is_graph", [True, False], ids=["graph", "Python"])
@pytest.mark.parametrize("batch", TWO.values(), ids=TWO)
def test_of_a_list_as_many_items_are_inputs_as_the_model_needs(batch: Any, is_graph: bool) -> None:
    model = fx.symbolic_trace(Several()) if is_graph else Branching()
    assert_equal(arguments_of(model, batch, "batch 0"), (X, Y, 2.0, "none"))


@pytest.mark.parametrize("is_graph", [True, False], ids=["graph", "Python"])
@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ((X, Y), (X, Y)),
        ((X, Y, 0.5), (X, Y, 0.5)),
        ([X, Y], (X, Y)),
        ([X, Y, "label"], (X, Y)),
        ((X, Y, 0.5, "text", "label"), (X, Y)),
        (([X, Y], "label"), (X, Y)),
        (UserDict(x=X, y=Y), {"x": X, "y": Y}),
    ],
    ids=["tuple", "optional", "list", "labels", "too many", "pair", "mapping"],
)
def test_an_example_is_a_tuple_of_arguments_or_a_batch_of_a_loader(
    example: Any, expected: Any, is_graph: bool
) -> None:
    model = fx.symbolic_trace(Several()) if is_graph else Branching()
    if isinstance(example, tuple) and isinstance(example[0], list):
        example = list(example)
    found: Any = example_of(model, example)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    assert_equal(found, expected)


def test_batches_of_a_loader_work_wherever_an_example_is_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
    batch = [X, torch.zeros(3)]
    for example in (batch, tuple(batch)):
        quantized = fxquant.quantize(model, [example], example_inputs=example)
        assert torch.equal(fxquant.lower(quantized, example)(X), fxquant.lower(quantized)(X))


def test_fewer_items_than_the_model_needs_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="the model also needs y: give a dict of keywords"):
        arguments_of(fx.symbolic_trace(Several()), [X], "batch 0")
    with pytest.raises(CalibrationError, match="cannot be called with one argument: missing a"):
        arguments_of(Branching(), [X], "batch 0")


class Levels(nn.Module):
    def forward(self, levels: Any, scale: float = 2.0) -> Any:
        return [each * scale for each in levels]


@pytest.mark.parametrize("batch", [[X, Y], (X, Y), ([X, Y],), ([X, Y], "label")], ids=str)
def test_a_graph_that_takes_a_list_may_be_given_just_that(batch: Any) -> None:
    gm = fxquant.trace(Levels(), example_inputs=([X, Y],))
    (levels, scale) = arguments_of(gm, batch, "batch 0")
    assert_equal(list(levels), [X, Y])
    assert scale == 2.0


@pytest.mark.parametrize(
    ("batch", "shown"),
    [("text", "('text')"), (3, "(3)"), ((), "()"), ([{"x": X}], "[{x: float32 3×4}]")],
)
def test_a_batch_of_another_type_is_an_error(batch: Any, shown: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        arguments_of(fx.symbolic_trace(Several()), batch, "batch 7")
    assert str(caught.value) == (
        f"batch 7 {shown}: give tensors, tuples or lists that start with one, or dicts of "
        "keywords; or pass forward=lambda model, batch: … to calibrate"
    )


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": X, "y": Y, "scael": 3.0},
            "{x: float32 3×4, y: float32 3×4, scael: 3.0}: the model has no argument scael; it has "
            "x, y, scale, text: leave out what it does not take, or pass forward=lambda model, "
            "batch: … to calibrate",
        ),
        ({"x": X}, "{x: float32 3×4}: the model also needs y: give a dict of keywords"),
        (X, "(float32 3×4): the model also needs y: give a dict of keywords"),
    ],
    ids=["unknown", "missing", "tensor"],
)
def test_arguments_that_do_not_fit_are_an_error(batch: Any, message: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        arguments_of(fx.symbolic_trace(Several()), batch, "batch 7")
    assert str(caught.value) == f"batch 7 {message}"


class AnyNumber(nn.Module):
    def forward(self, *inputs: Any, **others: Any) -> Any:
        return sum(inputs)


LABELS = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, (X,)),
        ((X,), (X,)),
        ([X, LABELS], (X,)),
        ((X, "label", 3), (X,)),
        ([[X, Y], LABELS], (X, Y)),
        (((X, Y), X), (X, Y)),
    ],
    ids=["tensor", "tuple", "labels", "no tensors", "nested", "nested, an image behind"],
)
def test_a_model_of_any_number_of_inputs_gets_what_is_clear(batch: Any, expected: Any) -> None:
    assert_equal(arguments_of(AnyNumber(), batch, "batch 0"), expected)
    assert_equal(
        example_of(AnyNumber(), list(batch) if isinstance(batch, tuple) else batch), expected
    )


@pytest.mark.parametrize("batch", [[X, Y], (X, Y, LABELS)], ids=str)
def test_how_many_inputs_there_are_is_not_guessed(batch: Any) -> None:
    with pytest.raises(CalibrationError, match=f"the batch's {len(batch)} items are inputs: give"):
        arguments_of(AnyNumber(), batch, "batch 0")
    with pytest.raises(CalibrationError, match="batch 0: forward takes any number of arguments"):
        fxquant.quantize(AnyNumber(), [batch])


class OfOne(nn.Module):
    def forward(self, batch: Any, scale: float = 2.0) -> Any:
        return batch["x"] * scale + batch["y"]


@pytest.mark.parametrize("is_graph", [True, False], ids=["graph", "Python"])
def test_a_mapping_is_the_input_of_a_model_that_takes_but_one(is_graph: bool) -> None:
    batch = {"x": X, "y": Y}
    model = fxquant.trace(OfOne()) if is_graph else OfOne()
    for given in (batch, [batch, "label"], {"batch": batch}, {"batch": batch, "scale": 2.0}):
        found, scale = arguments_of(model, given, "batch 0")
        assert (found, scale) == (batch, 2.0)
    assert example_of(model, batch) == (batch,)
    assert example_of(model, {"batch": batch}) == {"batch": batch}


class ByKeyword(nn.Module):
    def forward(self, x: Tensor, *, y: Any = None, scale: float = 2.0) -> Any:
        return x * scale if y is None else x * scale + y


def test_what_can_be_given_by_keyword_only_is_given_so() -> None:
    call = call_of_batch(ByKeyword(), {"x": X, "y": Y}, "batch 0")
    assert_equal(call.args, (X,))
    assert call.kwargs.keys() == {"y"}
    assert_equal(arguments_of(ByKeyword(), [X, "label"], "batch 0"), (X,))
    with pytest.raises(CalibrationError, match="forward: y can be given by keyword only"):
        arguments_of(ByKeyword(), {"x": X, "y": Y}, "batch 0")


def test_a_model_that_writes_to_its_input_leaves_the_batch_alone() -> None:
    batch: dict[str, Any] = {"x": X.clone(), "other": [X.clone()]}

    def write(model: Any, batch: Any) -> Any:
        return batch["x"].zero_(), batch["other"][0].zero_()

    class Writes(nn.Module):
        def forward(self, x: Tensor, other: Any) -> Any:
            return x.zero_(), other[0].zero_()

    for forward in (None, write):
        call_on_batch(Writes(), batch, "batch 0", forward)
        assert torch.equal(batch["x"], X)
        assert torch.equal(batch["other"][0], X)


def test_takes_samples_and_reads_no_further_than_it_needs() -> None:
    x, read = torch.randn(12, 4), []

    def batches() -> Iterator[Arguments]:
        for number, batch in enumerate(torch.split(x, 4)):
            read.append(number)
            yield batch, "text", -batch

    expected = [(x[:4], "text", -x[:4]), (x[4:6], "text", -x[4:6])]
    assert_equal(Batches.taken(batches(), 6).arguments, expected)
    assert_equal(Batches.taken(batches(), 8).arguments[1], (x[4:8], "text", -x[4:8]))
    assert read == [0, 1, 0, 1]
    assert sum(len(batch[0]) for batch in Batches.taken(batches(), 99).arguments) == 12
    assert Batches.taken([], 5).arguments == []


def test_takes_inputs_without_a_batch_axis_whole() -> None:
    batches = [(torch.randn(3, 8, 8),) for _ in range(4)]
    assert_equal(Batches.taken(batches, 2, unbatched_rank=3).arguments, batches[:2])
    assert_equal(Batches(batches, unbatched_rank=3).of_size(2).arguments, batches)


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [2, 9, 1], [4, 4, 4]], ids=str)
def test_regroups_batches_of_one_tensor(sizes: list[int], size: int) -> None:
    x = torch.randn(12, 2, 3)
    grouped = (
        Batches([("text", batch, None) for batch in torch.split(x, sizes)]).of_size(size).arguments
    )
    assert torch.equal(torch.cat([batch for _, batch, _ in grouped]), x)
    assert max(len(batch) for _, batch, _ in grouped) <= size
    assert all((text, none) == ("text", None) for text, _, none in grouped)


def test_single_samples_fill_the_batches() -> None:
    grouped = Batches([(each[None],) for each in torch.randn(12, 3)]).of_size(5).arguments
    assert [len(batch) for (batch,) in grouped] == [5, 5, 2]


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [(torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(1, 3), torch.ones(1, 3))],
        [(torch.ones(2, 3),), (torch.ones(2, 4),)],
        [(torch.ones(2, 3),), (torch.ones(2, 3, 1),)],
        [(torch.ones(2, 3),), (torch.ones(2, 3).double(),)],
        [(torch.ones(3),), (torch.ones(3),)],
        [(torch.ones(2, 3), "a"), (torch.ones(2, 3), "b")],
        [(torch.ones(2, 3), [torch.ones(2)]), (torch.ones(2, 3), [torch.ones(2)])],
        [("a",), ("a",)],
        [(torch.ones(2, 3), None), (None, torch.ones(2, 3))],
    ],
    ids=["none", "two", "ragged", "ranks", "dtypes", "1-D", "text", "lists", "tensorless", "mixed"],
)
def test_leaves_other_batches_alone(batches: list[Arguments]) -> None:
    grouped = Batches(batches).of_size(4).arguments
    assert all(one is other for one, other in zip(grouped, batches, strict=True))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Conv2d(3, 4, 3), (3, 8, 8)), (nn.Linear(4, 2), (4,))],
    ids=["image", "vector"],
)
def test_inputs_without_a_batch_axis_are_kept_whole(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    recipe = Recipe.adaround(steps=1, samples=5)
    batches = [torch.randn(shape) for _ in range(4)]
    quantized = fxquant.quantize(nn.Sequential(model), batches, recipe, progress=False)
    assert quantized(batches[0]).shape == model(batches[0]).shape


@pytest.mark.parametrize("given", [True, False], ids=["given", "kept"])
def test_an_empty_batch_does_not_matter(given: bool) -> None:
    prepared = fxquant.prepare(Several(), Recipe.adaround(steps=1, samples=7))
    batches = [{"x": torch.randn(n, 4), "y": torch.randn(n, 4)} for n in (3, 0, 4)]
    fxquant.calibrate(prepared, batches, progress=False)
    converted = fxquant.convert(prepared, batches if given else None, progress=False)
    assert converted(**batches[0]).shape == (3, 2)
