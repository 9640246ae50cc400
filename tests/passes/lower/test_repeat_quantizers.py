"""RepeatQuantizers puts quantizers behind all that hands integers on, and changes no value."""

from collections.abc import Callable
from inspect import cleandoc
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.graph.operations import module_of
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.passes import RepeatQuantizers
from tests.helpers import Net, apply, graph_text, node, outputs, whole

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(
    function: Callable[[Any, Any], Any], recipe: Recipe | None = None, /, **parts: Any
) -> fx.GraphModule:
    recipe = recipe or Recipe.minmax()
    return whole(fxquant.quantize(Net(function, **parts), [X], recipe, progress=False))


def convs(*channels: int) -> dict[str, Any]:
    return {f"c{n}": nn.Conv2d(*sizes, 1) for n, sizes in enumerate(pairwise(channels))}


def num_quantizers(gm: fx.GraphModule) -> int:
    return sum(isinstance(module_of(gm, each), FakeQuantize) for each in gm.graph.nodes)


def test_quantizes_a_concatenation_again() -> None:
    gm = quantized(lambda m, x: m.c(torch.cat([m.a(x), m.b(x).relu()], 1)),
                   a=nn.Conv2d(4, 3, 1), b=nn.Conv2d(4, 3, 1), c=nn.Conv2d(6, 2, 1))  # fmt: skip
    expected = outputs(gm, 2 * X)
    assert apply(RepeatQuantizers(), gm)
    assert [line.partition(" # ")[0] for line in graph_text(gm).split("\n")] == cleandoc("""
        x = input()
        quantizers_x = self.quantizers.x(x)
        a = self.a(quantizers_x)
        quantizers_cat = self.quantizers.cat(a)
        b = self.b(quantizers_x)
        relu = b.relu()
        quantizers_cat_1 = self.quantizers.cat(relu)
        cat = torch.cat([quantizers_cat, quantizers_cat_1], 1)
        quantizers_cat_2 = self.quantizers.cat(cat)
        c = self.c(quantizers_cat_2)
        return c
    """).split("\n")
    assert torch.equal(outputs(gm, 2 * X), expected)
    assert not apply(RepeatQuantizers(), gm)


CHAINS: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "max-pool": (lambda m, x: F.max_pool2d(x, 2), 1),
    "reshape, transpose": (lambda m, x: x.reshape(2, 4, 4, 16).transpose(2, 3), 2),
    "padding": (lambda m, x: F.pad(x, (1, 1)), 1),
    "nearest": (lambda m, x: F.interpolate(x, scale_factor=2.0), 1),
    "both parts": (lambda m, x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), 3),
    "a concatenation of two": (lambda m, x: torch.cat([x, F.max_pool2d(x, 1)], 1)[:, :4], 3),
}


@pytest.mark.parametrize(("chain", "number"), CHAINS.values(), ids=CHAINS)
def test_follows_values_through(chain: Callable[[Any, Tensor], Any], number: int) -> None:
    gm = quantized(lambda m, x: m.c1(chain(m, m.c0(x).relu())), **convs(4, 4, 2))
    before, expected = num_quantizers(gm), outputs(gm, 2 * X)
    assert apply(RepeatQuantizers(), gm)
    assert num_quantizers(gm) == before + number
    assert torch.equal(outputs(gm, 2 * X), expected)
    assert not apply(RepeatQuantizers(), gm)


def test_keeps_the_parts_of_a_split_together() -> None:
    gm = quantized(lambda m, x: m.c1(m.c0(x).chunk(2, 1)[0]), **convs(4, 4), c1=nn.Conv2d(2, 2, 1))
    assert apply(RepeatQuantizers(), gm)
    assert [user.target for user in node(gm, "chunk").users] == [node(gm, "getitem").target]


def test_leaves_several_parts_of_a_split_together() -> None:
    gm = quantized(lambda m, x: m.c1(m.c0(x).chunk(4, 1)[1:3][0]), c0=nn.Conv2d(4, 4, 1),
                   c1=nn.Conv2d(1, 2, 1))  # fmt: skip
    before = num_quantizers(gm)
    apply(RepeatQuantizers(), gm)
    assert num_quantizers(gm) == before


def test_leaves_a_concatenation_with_a_part_in_float() -> None:
    gm = quantized(lambda m, x: torch.cat([m.c0(x), x.sigmoid()], 1), **convs(4, 4))
    assert not apply(RepeatQuantizers(), gm)


def test_leaves_new_values() -> None:
    gm = quantized(lambda m, x: m.c1(F.avg_pool2d(m.c0(x), 2)), **convs(4, 4, 2))
    assert not apply(RepeatQuantizers(), gm)


def test_leaves_a_pool_that_returns_its_indices_too() -> None:
    gm = quantized(
        lambda m, x: m.c0(m.pool(x)[0]), pool=nn.MaxPool2d(2, return_indices=True), **convs(4, 2)
    )
    expected = outputs(gm, X)
    apply(RepeatQuantizers(), gm)
    assert torch.equal(outputs(gm, X), expected)
    assert not any(
        user.op == "call_module" for each in gm.graph.find_nodes(op="call_module", target="pool")
        for user in each.users
    )  # fmt: skip


def test_leaves_scales_of_each_channel() -> None:
    recipe = Recipe(activations=TensorSpec(per_channel=True))
    gm = quantized(lambda m, x: m.c1(F.max_pool2d(m.c0(x), 2)), recipe, **convs(4, 4, 2))
    assert not apply(RepeatQuantizers(), gm)


def test_leaves_alone_what_is_changed_in_place() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        z = m.b(y)
        y.mul_(7)
        return m.b(y.transpose(2, 3)) + z

    gm = quantized(function, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 2, 1))
    expected = outputs(gm, X)
    assert not apply(RepeatQuantizers(), gm)
    torch.testing.assert_close(outputs(gm, X), expected, rtol=0, atol=0)
