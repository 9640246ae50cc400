"""Blocks are found from the data flow: residual blocks, and single layers outside of them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe
from fxquant.passes import QuantizeWeights
from fxquant.rounding.blocks.find import Block, find_blocks
from tests.helpers import Net, apply, refusals, whole

Function = Callable[[Any, Any], Any]


def quantized(function: Function, recipe: Recipe | None = None, **parts: Any) -> fx.GraphModule:
    """Return the quantized graph of a model with 1×1 convolutions a to j of 4 channels."""
    convs = {name: nn.Conv2d(4, 4, 1) for name in "abcdefghij"}
    recipe = recipe or Recipe.minmax()
    x = torch.randn(2, 4, 4, 4)
    return whole(fxquant.quantize(Net(function, **{**convs, **parts}), [x], recipe))


def shown(blocks: list[Block]) -> list[str]:
    """Return the blocks as "name: entry → nodes", quantizers by their short names."""
    return [
        f"{block.name}: "
        + " | ".join(
            f"{path.entry.name} → {' '.join(node.name for node in path.nodes)}"
            for path in block.paths
        )
        for block in blocks
    ]


def names(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks]


FLOAT = Recipe.minmax(activation_bits=None)


def residual(m: Any, x: Any) -> Any:
    x = F.relu(m.a(x))
    return m.d(F.relu(m.c(F.relu(m.b(x))) + x))


def test_a_residual_block_reaches_from_where_ways_part_to_the_relu_behind_the_addition() -> None:
    assert shown(find_blocks(quantized(residual, FLOAT))) == [
        "a: x → a relu",
        "b to c: relu → b relu_1 c add relu_2",
        "d: relu_2 → d",
    ]


def test_quantizers_that_a_block_alone_reads_belong_to_it() -> None:
    gm = quantized(residual)
    blocks = find_blocks(gm)
    assert shown(blocks) == [
        "a: x → quantizers_x a relu",
        "b to c: relu → quantizers_relu b relu_1 quantizers_relu_1 c add relu_2",
        "d: relu_2 → quantizers_relu_2 d",
    ]
    quantizers = [gm.get_submodule(f"quantizers.{name}") for name in ("relu", "relu_1")]
    assert list(blocks[1].quantizers) == quantizers
    assert [each.name for each in blocks[1].subgraphs] == ["b", "c"]


def test_a_quantizer_that_others_read_too_stays_outside() -> None:
    def side(m: Any, x: Any) -> Any:
        x = F.relu(m.a(x))
        return F.relu(m.c(F.relu(m.b(x))) + x), m.d(x)

    (_, block, last) = find_blocks(quantized(side))
    assert shown([block, last]) == [
        "b to c: quantizers_relu → b relu_1 quantizers_relu_1 c add relu_2",
        "d: quantizers_relu → d",
    ]
    assert [type(each).__name__ for each in block.quantizers] == ["FakeQuantize"]


def test_a_block_is_found_where_another_output_is_still_alive() -> None:
    def pyramid(m: Any, x: Any) -> Any:
        low = F.relu(m.a(x))
        middle = F.relu(m.b(low) + low)
        return low, middle, F.relu(m.d(m.c(middle)) + middle)

    assert names(find_blocks(quantized(pyramid, FLOAT))) == ["a", "b", "c to d"]


def test_plain_chains_are_layers_with_their_activations() -> None:
    gm = quantized(lambda m, x: F.silu(m.b(F.max_pool2d(F.relu(m.a(x)), 2))), FLOAT)
    assert shown(find_blocks(gm)) == ["a: x → a relu", "b: max_pool2d → b silu"]


def test_layers_in_a_row_up_to_one_without_an_activation_are_a_block() -> None:
    gm = quantized(lambda m, x: m.d(m.c(F.silu(m.b(F.max_pool2d(F.relu(m.a(x)), 2))))), FLOAT)
    assert shown(find_blocks(gm)) == ["a to c: x → a relu max_pool2d b silu c", "d: c → d"]


def test_no_more_than_three_of_them() -> None:
    gm = quantized(lambda m, x: m.d(m.c(m.b(m.a(x).relu()).relu()).relu()), FLOAT)
    assert names(find_blocks(gm)) == ["a", "b to d"]


def test_layers_in_a_row_that_something_else_reads_are_not_joined() -> None:
    def call(m: Any, x: Any) -> Any:
        y = m.a(x).relu()
        return m.b(y), y.sigmoid()

    assert names(find_blocks(quantized(call, FLOAT))) == ["a", "b"]


def gated(m: Any, x: Any) -> Any:
    x = m.a(x)
    y = m.b(x)
    y = y * torch.sigmoid(m.d(F.relu(m.c(y.mean((2, 3), keepdim=True)))))
    return m.e(y) + x


def test_of_joins_inside_of_each_other_the_largest_counts() -> None:
    gm = quantized(gated, FLOAT)
    assert names(find_blocks(gm)) == ["a", "b to e"]
    assert refusals(gm) == {}


def test_where_the_largest_has_too_many_layers_the_next_one_counts() -> None:
    gm = quantized(gated, FLOAT)
    blocks = find_blocks(gm, max_layers=3)
    assert names(blocks) == ["a", "b", "c to d", "e"]
    reason = "not learned as one block: it has 4 quantized layers, more than 3"
    assert refusals(gm) == {"add": (reason,)}


def test_dense_connections_are_learned_layer_by_layer_for_one_reason() -> None:
    def dense(m: Any, x: Any) -> Any:
        features = [x]
        for layer in (m.a, m.k, m.l):
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)

    layers = {"k": nn.Conv2d(8, 4, 1), "l": nn.Conv2d(12, 4, 1)}
    gm = quantized(dense, FLOAT, **layers)
    assert len(find_blocks(gm)) == 1
    gm = quantized(dense, FLOAT, **layers)
    assert names(find_blocks(gm, max_layers=2)) == ["a", "k", "l"]
    reason = "not learned as one block: it has 3 quantized layers, more than 2"
    assert refusals(gm) == {"cat_3": (reason,)}


def test_what_is_read_from_inside_keeps_a_join_from_being_a_block() -> None:
    def leak(m: Any, x: Any) -> Any:
        y = m.a(x)
        return m.b(y) + x, y

    gm = quantized(leak, FLOAT)
    assert names(find_blocks(gm)) == ["a", "b"]
    assert refusals(gm) == {"add": ("not learned as one block: a inside of it also feeds output",)}


def test_a_module_called_outside_of_the_block_too_is_a_block_by_itself() -> None:
    gm = quantized(lambda m, x: m.a(m.a(F.relu(x)) + F.relu(x)), FLOAT)
    (block,) = find_blocks(gm)
    assert [(path.entry.name, path.exit.name, path.is_ahead) for path in block.paths] == [
        ("relu", "a", False),
        ("add", "a_1", True),
    ]
    assert refusals(gm) == {"add": ("not learned as one block: a is called outside of it too",)}


def test_a_module_called_twice_in_one_block_is_fine() -> None:
    (block,) = find_blocks(quantized(lambda m, x: m.a(F.relu(m.a(x))) + x, FLOAT))
    assert shown([block]) == ["a: x → a relu a_1 add"]


def test_sizes_and_parameters_are_computed_inside() -> None:
    def reshaped(m: Any, x: Any) -> Any:
        x = F.relu(x)
        y = m.a(x) + m.bias
        return y.view(x.size(0), -1) + x.flatten(1)

    (block,) = find_blocks(quantized(reshaped, FLOAT, bias=torch.ones(1, 4, 1, 1)))
    assert shown([block]) == ["a: relu → a bias add size view flatten add_1"]


def test_a_size_from_outside_keeps_a_join_from_being_a_block() -> None:
    def sized(m: Any, x: Any) -> Any:
        y = m.a(x)
        x = F.relu(m.b(y))
        return m.c(x).view(y.shape[0], -1) + x.flatten(1)

    gm = quantized(sized, FLOAT)
    assert names(find_blocks(gm)) == ["a", "b", "c"]
    assert refusals(gm) == {"add": ("not learned as one block: it needs the size of a",)}


def test_a_size_of_what_no_rounding_has_reached_is_computed_from_context() -> None:
    def sized(m: Any, x: Any) -> Any:
        y = F.relu(m.a(x))
        return m.b(y).view(x.shape[0], -1) + y.flatten(1)

    _, block = find_blocks(quantized(sized, FLOAT))
    assert block.paths[0].exit.name == "add"
    assert [each.name for each in block.paths[0].context] == ["x"]


def test_in_place_additions_and_relus_are_followed() -> None:
    def inplace(m: Any, x: Any) -> Any:
        x = m.relu(m.a(x))
        y = m.c(m.relu(m.b(x)))
        y.add_(x)
        return m.d(m.relu(y))

    gm = quantized(inplace, FLOAT, relu=nn.ReLU(inplace=True))
    assert shown(find_blocks(gm)) == [
        "a: x → a relu",
        "b to c: relu → b relu_1 c add_ relu_2",
        "d: relu_2 → d",
    ]


def test_branches_of_a_split_are_in_the_block_with_the_split() -> None:
    def shuffled(m: Any, x: Any) -> Any:
        left, right = F.relu(m.a(x)).chunk(2, 1)
        return torch.cat([left, m.k(right)], 1)

    (_, block) = find_blocks(quantized(shuffled, FLOAT, k=nn.Conv2d(2, 2, 1)))
    assert shown([block]) == ["k: relu → chunk getitem getitem_1 k cat"]


def test_two_inputs_have_nothing_in_front_of_them() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.a(x) + self.b(y))

    prepared = fxquant.prepare(Two(), FLOAT)
    prepared(torch.rand(2, 4), torch.rand(2, 4))
    assert names(find_blocks(whole(fxquant.convert(prepared)))) == ["a", "b"]


def test_a_layer_that_does_not_depend_on_the_input_stays_as_it_is() -> None:
    query = torch.rand(1, 4, 1, 1)
    gm = fxquant.trace(Net(lambda m, x: x + m.a(m.query), a=nn.Conv2d(4, 4, 1), query=query))
    apply(QuantizeWeights(FLOAT), gm)  # not `prepare`, which computes it once
    assert find_blocks(gm) == []
    reason = "rounded to nearest: its input does not depend on the model's"
    assert refusals(gm)["a"] == (reason,)


def test_nothing_quantized_is_no_block() -> None:
    assert find_blocks(fxquant.trace(nn.Sequential(nn.Linear(4, 4)))) == []


@pytest.mark.parametrize(
    ("name", "sizes"), [("resnet18", {1: 2, 2: 5, 3: 3}), ("mobilenet_v2", {1: 23, 3: 10})]
)
def test_torchvision_models_fall_into_their_blocks(name: str, sizes: dict[int, int]) -> None:
    gm = fxquant.trace(getattr(torchvision.models, name)().eval())
    apply(QuantizeWeights(FLOAT), gm)
    assert Counter(len(block.subgraphs) for block in find_blocks(gm)) == sizes
    assert refusals(gm) == {}


def test_no_block_misses_a_change_through_a_view() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        z = m.b(y)
        part = z[:, :2]
        F.relu_(z)
        return m.d(m.c(z) + part.repeat(1, 2, 1, 1) + y)

    gm = quantized(function, FLOAT)
    assert names(find_blocks(gm)) == ["a", "b", "c"]
    reason = "relu_ changes a tensor in place that is read through a view of it"
    found = refusals(gm)
    assert found["d"] == (f"not learned from values: {reason}",)
    assert found["add_1"] == (f"not learned as one block: {reason}",)


def test_no_block_holds_a_layer_that_misses_a_change_elsewhere() -> None:
    def function(m: Any, x: Any) -> Any:
        y = F.relu(m.a(x) + m.b(m.c(x)))
        part = y[:, :2]
        F.relu_(y)
        return m.a(part.repeat(1, 2, 1, 1))

    gm = quantized(function, FLOAT)
    assert names(find_blocks(gm)) == ["c", "b"]
    assert refusals(gm)["relu"] == ("not learned as one block: a in it is not learned",)
