"""A state dict holds the numbers in a graph's calls: whole models and regions, lowered or not."""

import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import LoweringError, Recipe
from fxquant.passes import ClampFloats
from tests.detectors import BATCHES, assert_equal, detector
from tests.detectors import run as run_detector
from tests.helpers import Net, assert_same_state, needs_int8, outputs, whole

Way = Callable[[nn.Module], nn.Module]
WAYS = [pytest.param(fxquant.lower, marks=needs_int8), fxquant.to_qdq]


def forward(m: Any, x: Any) -> Any:
    """Compute what has an addition, a concatenation, pools, a padding and a mean in integers.

    One layer is called twice.
    """
    y = F.relu(m.a(x))
    y = torch.cat([m.b(m.b(y)) + y, F.max_pool2d(y, 3, 1, 1)], 1)
    y = F.avg_pool2d(F.pad(y, (1, 1)), 2).sigmoid()
    return m.fc(m.c(y).mean((2, 3)))


@functools.cache
def converted(seed: int, width: float = 1.0, recipe: Recipe | None = None) -> fx.GraphModule:
    torch.manual_seed(seed)
    model = Net(
        forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3, padding=1), c=nn.Conv2d(8, 4, 1),
        fc=nn.Linear(4, 5),
    )  # fmt: skip
    return whole(fxquant.quantize(model, [width * images()], recipe))


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_becomes_the_one_whose_state_it_loads(way: Way) -> None:
    model, other = way(converted(0)), way(converted(1, width=3))
    expected = outputs(other, images())
    assert not torch.allclose(outputs(model, images()), expected)
    assert model.load_state_dict(through_a_file(other.state_dict())).missing_keys == []
    assert torch.equal(outputs(model, images()), expected)
    assert fxquant.text(model) == fxquant.text(other)
    assert_same_state(model, other)
    assert fxquant.compare(converted(1, width=3), model, [images()]).first_departure is None


@needs_int8
def test_the_state_names_the_numbers_by_node_and_argument() -> None:
    lowered = fxquant.lower(fxquant.quantize(nn.Sequential(nn.Linear(8, 2)), [images()]))
    state = lowered.state_dict()
    assert [name for name in state if name.startswith("fxquant.")] == [
        "fxquant.quantize.scale", "fxquant.quantize.zero_point",
        "fxquant._0.input_scale", "fxquant._0.input_zero_point", "fxquant.form",
    ]  # fmt: skip
    scale = state["fxquant.quantize.scale"]
    assert (scale.dtype, scale.shape) == (torch.float64, ())
    assert f"quantize(input_1, {scale.item()}, " in fxquant.text(lowered)


def stored(model: nn.Module, folder: Path) -> nn.Module:
    fxquant.save(model, folder / "model.fxq")
    return fxquant.load(folder / "model.fxq")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "duplicate",
    [
        lambda model, folder: copy.deepcopy(model),
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        stored,
    ],
    ids=["deepcopy", "pickle", "save"],
)
def test_duplicates_keep_the_numbers_in_their_state(
    way: Way, duplicate: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    model, other = way(converted(0)), way(converted(1, width=3))
    before = duplicate(model, tmp_path)
    assert_same_state(before, model)
    for each in (before, model):
        each.load_state_dict(other.state_dict())
    after = duplicate(model, tmp_path)
    for each in (before, after):
        assert torch.equal(outputs(each, images()), outputs(other, images()))
        assert_same_state(each, other)
        assert fxquant.text(each) == fxquant.text(other)


def test_unpickling_keeps_weights_integers() -> None:
    model = whole(pickle.loads(pickle.dumps(fxquant.to_qdq(converted(0)))))
    read = [str(node.target) for node in model.graph.find_nodes(op="get_attr")]
    assert [name for name in read if name.endswith("weight_integers")] == [
        "a.weight_integers", "b.weight_integers", "c.weight_integers", "fc.weight_integers",
    ]  # fmt: skip


def test_a_compiled_model_follows_a_state_that_is_loaded() -> None:
    model, other = fxquant.to_qdq(converted(0)), fxquant.to_qdq(converted(1, width=3))
    compiled: Any = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(images()), model(images()))
        model.load_state_dict(other.state_dict())


OTHER_STATES: dict[str, tuple[Callable[[Way], Any], str]] = {
    "bits": (
        lambda way: way(converted(0, recipe=Recipe.aciq(activation_bits=6))).state_dict(),
        "its calls are others, or of other bits",
    ),
    "layers in float": (
        lambda way: way(converted(0, recipe=Recipe.aciq(skip=["c"]))).state_dict(),
        "it has no '",
    ),
    "no number": (
        lambda way: {**way(converted(0)).state_dict(), **of_first(way, torch.tensor(float("nan")))},
        "scale' is nan",
    ),
    "negative": (
        lambda way: {**way(converted(0)).state_dict(), **of_first(way, torch.tensor(-1.0))},
        "scale' is -1.0",
    ),
    "no tensor": (
        lambda way: {**way(converted(0)).state_dict(), **of_first(way, "wide")},
        "scale' is wide",
    ),
    "two": (
        lambda way: {**way(converted(0)).state_dict(), **of_first(way, torch.ones(2))},
        "scale' is tensor([1., 1.])",
    ),
}


def of_first(way: Way, value: Any) -> dict[str, Any]:
    """Return a state of one scale."""
    names = [name for name in way(converted(0)).state_dict() if name.startswith("fxquant.")]
    return {next(name for name in names if name.endswith("scale")): value}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OTHER_STATES)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_another_graph_is_refused_before_anything_is_loaded(
    way: Way, kind: str, strict: bool
) -> None:
    model, (make_state, reason) = way(converted(1)), OTHER_STATES[kind]
    before = copy.deepcopy(model)
    with pytest.raises(LoweringError) as raised:
        model.load_state_dict(make_state(way), strict)
    message = str(raised.value)
    assert message.startswith("load_state_dict: the state is not of such a graph: ")
    assert reason in message
    assert message.endswith("lower that, or keep models with fxquant.save")
    assert_same_state(model, before)
    assert torch.equal(outputs(model, images()), outputs(before, images()))


def test_what_a_pass_made_of_numbers_belongs_to_the_form() -> None:
    four_bits = Recipe.aciq(activation_bits=4)
    model, other = (whole(fxquant.to_qdq(converted(seed, recipe=four_bits))) for seed in (0, 1))
    model.load_state_dict(other.state_dict())
    for each in (model, other):
        assert ClampFloats()(each).modified
    model.load_state_dict(other.state_dict())
    another = whole(fxquant.to_qdq(converted(2, recipe=four_bits)))
    assert ClampFloats()(another).modified
    with pytest.raises(LoweringError, match="its calls are others"):
        model.load_state_dict(another.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_a_state_without_numbers_is_of_weights_alone(way: Way) -> None:
    model, other = way(converted(0)), way(converted(1, width=3))
    numbers = [name for name in model.state_dict() if name.startswith("fxquant.")]
    state = {name: each for name, each in other.state_dict().items() if name not in numbers}
    with pytest.raises(RuntimeError, match=r'Missing key.*"fxquant\.quantize'):
        copy.deepcopy(model).load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == numbers
    before = way(converted(0)).state_dict()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in numbers)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in state.items())


@pytest.mark.parametrize("way", WAYS)
def test_the_state_of_a_layer_leaves_the_numbers_of_its_graph(way: Way) -> None:
    model: Any = way(converted(0))
    before = outputs(model, images())
    model.a.load_state_dict(way(converted(0)).get_submodule("a").state_dict())
    assert torch.equal(outputs(model, images()), before)


def test_states_of_other_stages_are_refused() -> None:
    model = converted(0)
    standard = fxquant.to_qdq(model)
    with pytest.raises(RuntimeError, match="Missing key"):
        standard.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(standard.state_dict())
    assert not any(name.startswith("fxquant.") for name in model.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_integers_stays_in_float32(way: Way) -> None:
    model = way(converted(0))
    before, expected = copy.deepcopy(model), outputs(model, images())
    casts: list[Way] = [nn.Module.half, nn.Module.double, lambda m: m.to("meta", torch.half)]
    for cast in casts:
        with pytest.raises(LoweringError, match="a model of integers has"):
            cast(model)
    assert_same_state(model.float().cpu().share_memory(), before)
    assert torch.equal(outputs(model, images()), expected)
    cast_before = copy.deepcopy(converted(0)).double()
    assert outputs(cast_before, images().double()).dtype == torch.float64


@needs_int8
def test_regions_have_their_numbers_each() -> None:
    brighter = [[3 * image for image in batch] for batch in BATCHES]
    lowered, other = (
        fxquant.lower(fxquant.quantize(detector(), batches)) for batches in (BATCHES, brighter)
    )
    expected = run_detector(other)
    lowered.load_state_dict(other.state_dict())
    assert_equal(run_detector(lowered), expected)
    assert_equal(run_detector(pickle.loads(pickle.dumps(lowered))), expected)
    with pytest.raises(LoweringError, match=r"load_state_dict: \S+: the state is not of such"):
        lowered.load_state_dict(of_another_region(other.state_dict()))


def of_another_region(state: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name in state if name.endswith("fxquant.form"))
    return {**state, name: state[name] + 1}
