"""A region is the submodule it stands for and a graph at once, and stays both when it is copied."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant.capture.naming import find_regions, node_name, path_of
from fxquant.capture.region import TRACED, Region, make_region
from fxquant.capture.tracer import trace_graph
from fxquant.graph.records import annotate, record
from fxquant.modules.layers import layer_type
from tests.helpers import node, outputs


class Block(nn.Module):
    """A submodule with all that the code around a region may want of it."""

    strides = (1, 2)
    table: Tensor
    scratch: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.notes = {"levels": [1, 2]}
        self.conv = nn.Conv2d(3, channels, 1)
        self.act = nn.ReLU()
        self.same_act = self.act
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Linear(2, 2))
        self.unused = nn.Linear(2, 2)
        self.bias = nn.Parameter(torch.randn(2))
        self.register_buffer("table", torch.randn(1))
        self.register_buffer("scratch", torch.randn(1), persistent=False)

    @property
    def out_channels(self) -> int:
        return self.channels

    def shifted(self, x: Tensor) -> Tensor:
        return self.unused(x) + self.bias  # type: ignore[no-any-return]

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.inner[0](self.act(self.conv(x))) * self.scratch * scale  # type: ignore[no-any-return]


class Pair(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return -output


def region_of(model: nn.Module, path: str = "net.block") -> Region:
    model = model.eval()
    return make_region(model, trace_graph(model, is_region=True), path)


def layer_region(layer: nn.Module) -> Region:
    graph = fx.Graph()
    graph.output(graph.call_module(TRACED, (graph.placeholder("input"),)))
    return make_region(layer, graph, "net.layer")


def by_torch_save(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


COPIES: dict[str, Callable[[Any], Any]] = {
    "made": lambda region: region,
    "deepcopy": copy.deepcopy,
    "deepcopy twice": lambda region: copy.deepcopy(copy.deepcopy(region)),
    "pickle": by_pickle,
    "pickle of a deepcopy": lambda region: by_pickle(copy.deepcopy(region)),
    "deepcopy of a pickle": lambda region: copy.deepcopy(by_pickle(region)),
    "torch.save": by_torch_save,
}
in_all_copies = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


@in_all_copies
def test_is_an_instance_of_its_submodules_class_and_of_graph_module(
    duplicate: Callable[[Any], Any],
) -> None:
    region = duplicate(region_of(Block(4)))
    assert isinstance(region, Block)
    assert isinstance(region, Region)
    assert isinstance(region, fx.GraphModule)
    assert type(region).__name__ == "Block"
    assert (region.path, region.original_type) == ("net.block", Block)
    assert not region.training


@in_all_copies
def test_computes_what_the_submodule_computes(duplicate: Callable[[Any], Any]) -> None:
    block = Block(4)
    region = duplicate(region_of(block))
    assert torch.equal(region(X), outputs(block, X))
    assert torch.equal(region(X, scale=2.0), outputs(block, X) * 2)


@in_all_copies
def test_keeps_attributes_methods_and_unused_submodules(duplicate: Callable[[Any], Any]) -> None:
    block = Block(4)
    region = duplicate(region_of(block))
    assert (region.channels, region.out_channels, region.strides) == (4, 4, (1, 2))
    assert region.notes == {"levels": [1, 2]}
    assert torch.equal(region.table, block.table)
    y = torch.randn(3, 2)
    assert torch.equal(region.shifted(y), block.shifted(y))
    assert torch.equal(region.inner[1](y), block.inner[1](y))
    assert len(region.inner) == 2


@in_all_copies
def test_keeps_what_is_saved_of_it(duplicate: Callable[[Any], Any]) -> None:
    block = Block(4)
    expected, actual = block.state_dict(), duplicate(region_of(block)).state_dict()
    traced = {f"traced.{name}": value for name, value in expected.items()}
    assert {name for name in actual if not name.startswith("traced.")} == expected.keys()
    assert {name for name in actual if name.startswith("traced.")} <= traced.keys()
    both = {**expected, **traced}
    assert all(torch.equal(value, both[name]) for name, value in actual.items())


@in_all_copies
def test_keeps_both_names_of_a_shared_submodule(duplicate: Callable[[Any], Any]) -> None:
    region = duplicate(region_of(Block(4)))
    assert region.same_act is region.act


@in_all_copies
def test_keeps_forward_hooks(duplicate: Callable[[Any], Any]) -> None:
    block = Block(4)
    plain = outputs(block, X)
    block.register_forward_hook(hook)
    assert torch.equal(duplicate(region_of(block))(X), -plain)


def test_hooks_with_keywords_run_before_and_behind_it() -> None:
    seen: list[Any] = []
    block = Block(4)
    block.register_forward_pre_hook(lambda *given: seen.append(given[2]), with_kwargs=True)
    block.register_forward_hook(lambda *given: seen.append(given[2]), with_kwargs=True)
    region_of(block)(X, scale=3.0)
    assert seen == [{"scale": 3.0}, {"scale": 3.0}]


def test_shares_its_submodules_with_the_submodule_and_its_copies_share_nothing() -> None:
    block = Block(4)
    region = region_of(block)
    assert region.conv is block.conv
    assert region.unused is block.unused
    copied = copy.deepcopy(region)
    mine = {id(tensor) for tensor in (*region.parameters(), *region.buffers())}
    assert not mine & {id(tensor) for tensor in (*copied.parameters(), *copied.buffers())}
    copied.notes["levels"].append(3)
    assert region.notes == {"levels": [1, 2]}


def test_the_submodules_own_init_does_not_run_again() -> None:
    made = []

    class Counted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            made.append(name)

        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    copy.deepcopy(region_of(Counted("first")))
    assert made == ["first"]


@in_all_copies
def test_two_names_of_a_region_stay_two_names_of_one(duplicate: Callable[[Any], Any]) -> None:
    region = region_of(Block(4))
    pair = duplicate(Pair(region, region))
    assert pair.one is pair.other
    assert list(find_regions(pair)) == ["net.block"]


@in_all_copies
def test_tensors_that_two_regions_share_stay_shared(duplicate: Callable[[Any], Any]) -> None:
    one, other = Block(4), Block(4)
    other.bias = one.bias
    other.conv.weight = one.conv.weight
    pair = duplicate(Pair(region_of(one, "one"), region_of(other, "other")))
    assert pair.other.bias is pair.one.bias
    assert pair.other.conv.weight is pair.one.conv.weight
    assert list(find_regions(pair)) == ["one", "other"]


@pytest.mark.parametrize("duplicate", [COPIES["deepcopy"], COPIES["deepcopy twice"]])
def test_a_deepcopy_keeps_node_names_and_records(duplicate: Callable[[Any], Any]) -> None:
    region = region_of(Block(4))
    annotate(node(region, "conv"), folded=("bn",))
    copied = duplicate(region)
    assert [each.name for each in copied.graph.nodes] == [each.name for each in region.graph.nodes]
    assert record(node(copied, "conv")).folded == ("bn",)


@pytest.mark.parametrize(
    ("layer", "x"), [(nn.Conv2d(3, 4, 3), X), (nn.Linear(4, 5), X)], ids=["conv", "linear"]
)
@in_all_copies
def test_a_single_layer_answers_to_its_attributes_and_is_no_layer(
    duplicate: Callable[[Any], Any], layer: Any, x: Tensor
) -> None:
    region: Any = duplicate(layer_region(layer))
    assert torch.equal(region.weight, layer.weight)
    assert torch.equal(region(x), layer(x))
    assert type(region).__name__ == type(layer).__name__
    assert isinstance(region, type(layer))
    assert region.original_type is type(layer)
    assert region.path == "net.layer"
    assert layer_type(region) is None
    assert layer_type(region.get_submodule(TRACED)) is type(layer)
    assert region.weight is region.get_submodule(TRACED).weight
    assert region.weight.dtype == torch.float32
    assert hasattr(region, "bias")


def test_a_single_layer_keeps_its_hooks_on_the_layer() -> None:
    layer = nn.Linear(4, 5)
    expected = -layer(X)
    layer.register_forward_hook(hook)
    region = layer_region(layer)
    assert not region._forward_hooks
    assert torch.equal(region(X), expected)


@pytest.mark.parametrize("region", [region_of(Block(4)), layer_region(nn.Linear(4, 5))])
def test_what_the_submodule_lacks_is_an_attribute_error(region: Region) -> None:
    with pytest.raises(AttributeError, match="anchors"):
        _ = region.anchors
    assert not hasattr(region, "anchors")


class Adapted(nn.Linear):
    """A layer with a forward of its own, and layers inside."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))  # type: ignore[no-any-return]


@in_all_copies
def test_a_subclass_of_a_layer_with_a_forward_of_its_own(duplicate: Callable[[Any], Any]) -> None:
    model = Adapted()
    region = duplicate(region_of(model))
    assert isinstance(region, Region)
    assert torch.equal(region(X), model(X))
    for name, value in model.state_dict().items():
        assert torch.equal(region.get_parameter(name), value)


def test_regions_are_found_by_path_and_one_graph_is_its_own() -> None:
    one, other = region_of(Block(4), "a.one"), layer_region(nn.Linear(4, 5))
    model = Pair(one, nn.Sequential(other))
    assert find_regions(model) == {"a.one": one, "net.layer": other}
    assert find_regions(one) == {"a.one": one}
    assert find_regions(Block(4)) == {}
    gm = fxquant.trace(Block(4))
    assert find_regions(gm) == {"": gm}


def test_nodes_are_named_with_their_region_in_front() -> None:
    region, gm = region_of(Block(4)), fxquant.trace(Block(4))
    assert (path_of(region), path_of(gm)) == ("net.block", "")
    assert node_name(region, node(region, "conv")) == "net.block.conv"
    assert node_name(gm, node(gm, "conv")) == "conv"
