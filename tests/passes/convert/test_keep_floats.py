"""KeepFloats lets calls read float values where rounding costs more than integers save."""

from inspect import cleandoc
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant import Recipe
from fxquant.numerics.decibels import sqnr
from fxquant.passes import ChooseRanges, KeepFloats
from tests.helpers import Net, apply, graph_text, outputs, refusals, whole
from tests.passes.convert.test_choose_ranges import calibrated, identity, quantizers, short_text


def uneven(factor: float) -> nn.Linear:
    """Return a layer whose last two outputs are larger than the first two."""
    layer = identity(4)
    layer.weight.data[2:] *= factor
    return layer


@pytest.mark.parametrize(("factor", "names"), [(1.5, {"a"}), (50, {"getitem", "a"})])
def test_a_part_shares_with_the_whole_what_costs_it_no_more_than_a_bit(
    factor: float, names: set[str]
) -> None:
    def forward(m: Any, x: Any) -> Any:
        small, large = (y := m.a(x))[:, :2], y[:, 2:]
        return m.b(small) * m.c(large)

    model = Net(forward, a=uneven(factor), b=identity(2), c=identity(2))
    x = torch.rand(64, 4)
    gm = calibrated(model, x)
    apply(KeepFloats(), gm)
    apply(ChooseRanges(), gm)
    assert set(quantizers(gm)) == {"x", *names}
    assert sqnr(outputs(model, x), outputs(gm, x)) > 40


def test_parts_of_one_split_may_do_either() -> None:
    def forward(m: Any, x: Any) -> Any:
        small, large = m.a(x).chunk(2, 1)
        return m.b(small) * m.c(large)

    model = Net(forward, a=uneven(50), b=identity(2), c=identity(2))
    gm = calibrated(model, torch.ones(1, 4))
    apply(KeepFloats(), gm)
    apply(ChooseRanges(), gm)
    text = short_text(gm).replace("# FakeQuantize ", "# ")
    assert text == cleandoc("""
        x = input()
        quantizers_x = self.quantizers.x(x) # scale=0.003922 zero_point=0
        a = self.a(quantizers_x) # Linear
        quantizers_a = self.quantizers.a(a) # scale=0.1961 zero_point=0
        chunk_1 = a.chunk(2, 1)
        chunk = quantizers_a.chunk(2, 1)
        getitem_2 = operator.getitem(chunk_1, 0)
        quantizers_getitem = self.quantizers.getitem(getitem_2) # scale=0.003922 zero_point=0
        getitem_1 = operator.getitem(chunk, 1)
        b = self.b(quantizers_getitem) # Linear
        c = self.c(getitem_1) # Linear
        mul = operator.mul(b, c)
        return mul
    """)


def scaled(factor: float) -> nn.Linear:
    layer = identity(4)
    layer.weight.data *= factor
    return layer


def kept(function: Any, recipe: Recipe | None = None, /, **parts: Any) -> fx.GraphModule:
    """Return the graph after the pass; `a`, `b` and `c` compute their input."""
    layers = {"a": identity(4), "b": identity(4), "c": identity(4), **parts}
    gm = calibrated(Net(function, **layers), torch.rand(64, 4), recipe=recipe or Recipe.minmax())
    apply(KeepFloats(), gm)
    return gm


def operands(gm: fx.GraphModule, name: str = "add") -> set[str]:
    (add,) = (each for each in gm.graph.nodes if each.name == name)
    return {each.name for each in add.all_input_nodes}


def block(m: Any, x: Any) -> Any:
    y = m.a(x)
    return m.c(m.b(y).sigmoid() * m.scale + y)


@pytest.mark.parametrize(("scale", "is_float"), [(1.0, False), (0.1, True)])
def test_a_branch_that_adds_little_is_added_in_float(scale: float, is_float: bool) -> None:
    gm = kept(block, scale=nn.Parameter(torch.full((4,), scale)))
    expected = {"mul", "a"} if is_float else {"observers_mul", "observers_a"}
    assert operands(gm) == expected
    reasons = [reason for each in refusals(gm).values() for reason in each]
    assert is_float == any("added in float: the steps of its sum are" in each for each in reasons)
    assert ("observers.mul" in dict(gm.named_modules())) != is_float


def test_a_branch_of_zeros_costs_nothing() -> None:
    gm = kept(block, scale=nn.Parameter(torch.zeros(4)))
    assert operands(gm) == {"observers_mul", "observers_a"}


def test_a_sum_that_is_added_in_float_later_is_one_of_floats() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        y = (m.b(y).sigmoid() + y).relu()
        return m.c(m.b(y).sigmoid() * 0.01 + y)

    gm = kept(function)
    assert operands(gm, "add_1") == {"mul", "relu"}
    assert operands(gm) == {"sigmoid", "a"}
    assert "observers_relu" in graph_text(gm)  # for the layer


def test_what_only_an_addition_would_have_in_integers_is_added_in_float() -> None:
    gm = kept(lambda m, x: m.c(x.sigmoid() + x.tanh()))
    assert operands(gm) == {"sigmoid", "tanh"}
    gm = kept(lambda m, x: m.c(m.a(y := x.sigmoid()) + x.tanh() * y))
    assert operands(gm) == {"a", "mul"}
    gm = kept(lambda m, x: m.c(m.a(x) + m.b(x)))
    assert operands(gm) == {"observers_a", "b"}
    gm = kept(lambda m, x: m.c(x.sigmoid() + x))
    assert operands(gm) == {"sigmoid", "x"}
    gm = kept(lambda m, x: m.c(x.sigmoid() + x) + m.a(x))
    assert operands(gm) == {"observers_sigmoid", "observers_x"}


def test_a_result_that_the_runtime_wants_quantized_stays_so() -> None:
    def function(m: Any, x: Any) -> Any:
        y = m.a(x)
        return m.c(m.small(m.b(y).sigmoid()) + y)

    recipe = Recipe.minmax(target="executorch")
    gm = kept(function, recipe, small=scaled(0.01))
    assert operands(gm) == {"observers_small", "observers_a"}


def test_a_stream_that_grows_by_little_at_each_block_is_not_rounded_at_each() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
            self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.03))

        def forward(self, x: Any) -> Any:
            return x + self.out(self.mix(x).relu()) * self.gamma

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block() for _ in range(24)), nn.Conv2d(8, 4, 1))
    x = torch.randn(4, 3, 8, 8)
    quantized = whole(fxquant.quantize(model, [x], Recipe.minmax(), progress=False))
    assert sqnr(outputs(model, x), outputs(quantized, x)) > 36  # 26.5 where sums are rounded
