"""What shares a scale, what has one of its own, and what stays in float: the outputs tell.

Each of these lost much of its signal where one scale went over all that meets or parts, or where
one reader put a whole stream into 8 bits. The floors are about what the better of torchao's PT2E
for x86 and onnxruntime's `quantize_static` leaves of such models, less 1 dB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import TARGETS, Recipe
from fxquant.int8.onednn import why_unavailable
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes import Pipeline, RepeatQuantizers
from tests.helpers import Net


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def chunk_and_exp(m: Any, x: Any) -> Any:
    a, b = m.conv(x).chunk(2, 1)
    return m.last(torch.cat([a, torch.exp(4 * b)], 1))


def coupling_of_a_flow(m: Any, x: Any) -> Any:
    a, b = m.conv(x).chunk(2, 1)
    return m.last(torch.cat([a, b * torch.exp(3 * m.g(a))], 1))


def slices_of_two_sizes(m: Any, x: Any) -> Any:
    y = m.conv(x)
    return m.last(torch.cat([y[:, :4], y[:, 4:] * 50], 1))


def small_beside_large(m: Any, x: Any) -> Any:
    y = m.conv(x)
    return m.wide(torch.cat([y, y * 50], 1))


def products_beside_a_wide_concatenation(m: Any, x: Any) -> Any:
    z = m.conv(x).flatten(2)
    products = torch.bmm(z, z.transpose(1, 2))
    return m.head(torch.cat([z[:, :, 0], products[:, 0], 30 * z[:, :, 1].exp()], 1))


def parts_of_two_sizes(m: Any, x: Any) -> Any:
    y = m.conv(x) * m.scale
    return m.g(y[:, :4]) + m.other(y[:, 4:])


MODELS: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
    "chunk and exp": (chunk_and_exp, 19.4),
    "the coupling of a flow": (coupling_of_a_flow, 19.8),
    "slices of two sizes": (slices_of_two_sizes, 34.0),
    "small beside large": (small_beside_large, 34.2),
    "products beside a wide concatenation": (products_beside_a_wide_concatenation, 30.0),
    "parts of two sizes": (parts_of_two_sizes, 30.0),
}
IMAGES = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RECIPES = [Recipe.aciq(), Recipe.minmax()]


def built(forward: Callable[[Any, Any], Any]) -> nn.Module:
    torch.manual_seed(0)
    scale = torch.tensor([50.0] * 4 + [1.0] * 4).reshape(8, 1, 1)
    other = conv(4, 4)
    other.weight.data *= 50
    return Net(
        forward, conv=conv(3, 8), g=conv(4, 4), last=conv(8, 8), wide=conv(16, 8),
        head=nn.Linear(24, 4), other=other, scale=scale,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=["aciq", "minmax"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_each_keeps_what_the_better_peer_keeps(name: str, recipe: Recipe) -> None:
    forward, floor = MODELS[name]
    model = built(forward)
    quantized = fxquant.quantize(model, [IMAGES], recipe, progress=False)
    assert sqnr(model(IMAGES), quantized(IMAGES)) > floor
    if why_unavailable() is None:
        lowered = fxquant.lower(quantized)
        assert sqnr(quantized(IMAGES), lowered(IMAGES)) > 45  # a value between two integers


class Tower(nn.Module):
    """A residual stream that norms read, and one layer more."""

    def __init__(self, *, outlier: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.start, self.extra, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            for _ in range(8)
        )
        self.norm = nn.LayerNorm(32)
        if outlier:
            self.start.bias.data[3] = 100.0

    def forward(self, x: Tensor) -> Any:
        x = y = self.start(x)
        for number, block in enumerate(self.blocks):
            x = x + block(x)
            y = x if number == 4 else y
        return self.head(self.norm(x)) + self.head(self.extra(y))


@pytest.mark.parametrize("recipe", RECIPES, ids=["aciq", "minmax"])
@pytest.mark.parametrize("outlier", [False, True])
@torch.no_grad()
def test_a_stream_that_norms_read_stays_in_float_whatever_else_reads_it(
    outlier: bool, recipe: Recipe
) -> None:
    model, x = Tower(outlier=outlier).eval(), IMAGES.flatten(1)[:, :16]
    quantized = fxquant.quantize(model, [x], recipe, progress=False)
    assert sqnr(model(x), quantized(x)) > 34.9


class Attended(nn.Module):
    """Squeeze and excitation, SiLU, an addition and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate = conv(3, 8), nn.Conv2d(8, 8, 1)
        self.mix, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.silu(self.conv(x))
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        z = torch.relu(self.mix(y) + y)
        return self.last(torch.cat([y, F.max_pool2d(z, 3, 1, 1)], 1))


EDGES = {"x", "adaptive_avg_pool2d", "mul"}
QUANTIZED = {
    "x86": {*EDGES, "relu"},
    "openvino": {*EDGES, "relu", "mix"},
    "onnxruntime": {
        *("x", "conv", "sigmoid_1", "silu", "adaptive_avg_pool2d", "gate", "sigmoid", "mul", "mix"),
        *("relu", "cat", "last"),
    },
    "tensorrt": {*EDGES, "cat"},
    "executorch": {
        *("x", "conv", "silu", "adaptive_avg_pool2d", "gate", "sigmoid", "mul", "mix", "relu"),
        "last",
    },
    "layers": {*EDGES, "cat"},
}
"""Whose results are rounded, for each target."""


@pytest.mark.parametrize("target", TARGETS)
@torch.no_grad()
def test_each_target_has_a_placement_of_its_own(target: str) -> None:
    model = Attended().eval()
    quantized: Any = fxquant.quantize(model, [IMAGES], Recipe.minmax(target=target), progress=False)
    rounded = {
        str(node.args[0])
        for node in quantized.graph.nodes
        if str(node.target).startswith("quantizers.")
    }
    assert {name for name in rounded if not name.startswith("quantizers_")} == QUANTIZED[target]
    assert sqnr(model(IMAGES), quantized(IMAGES)) > 30


def added_to_a_slice(m: Any, x: Any) -> Any:
    y = m.conv(x)
    y[:, 1:].add_(x[:, :1] * 9)
    return m.last(y.transpose(2, 3)) + y.exp()


def written_into(m: Any, x: Any) -> Any:
    y = m.conv(x)
    y[:, 0] = 3.0
    return m.last(y)


def a_part_changed(m: Any, x: Any) -> Any:
    y = m.conv(x)
    a, b = y[:, :4], y[:, 4:]
    a.add_(5)
    return m.g(b) + m.other(a) + m.g(y[:, 2:6])


def changed_by_a_relu(m: Any, x: Any) -> Any:
    y = m.conv(x).relu()
    y.sub_(0.5)
    return m.last(y)


IN_PLACE = (added_to_a_slice, written_into, a_part_changed, changed_by_a_relu)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("function", IN_PLACE, ids=lambda function: str(function.__name__))
def test_what_is_changed_in_place_is_rounded_behind_the_change(
    function: Callable[[Any, Any], Any], target: str
) -> None:
    torch.manual_seed(0)
    parts = {"conv": conv(3, 8), "last": conv(8, 8), "g": conv(4, 8), "other": conv(4, 8)}
    model = Net(function, **parts).eval()
    quantized: Any = fxquant.quantize(model, [IMAGES], Recipe.minmax(target=target), progress=False)
    expected = quantized(IMAGES)
    assert sqnr(model(IMAGES), expected) > 30
    repeated = Pipeline(RepeatQuantizers()).on_copy_of(quantized)
    torch.testing.assert_close(repeated(IMAGES), expected, rtol=0, atol=0)
    if target == "x86" and why_unavailable() is None:
        lowered = fxquant.lower(quantized)
        assert not any(isinstance(each, QuantizedLayer) for each in lowered.modules())
        assert sqnr(expected, lowered(IMAGES)) > 60


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_for_one_target_is_refused_by_the_ways_of_others(
    target: str, tmp_path: Any
) -> None:
    quantized = fxquant.quantize(
        nn.Sequential(nn.Linear(4, 4)), [torch.randn(8, 4)], Recipe.minmax(target=target)
    )
    ways: dict[str, Callable[[], object]] = {
        "lower": lambda: fxquant.lower(quantized),
        "to_qdq": lambda: fxquant.to_qdq(quantized),
        "export_onnx": lambda: fxquant.export_onnx(quantized, tmp_path / "a", torch.randn(2, 4)),
    }
    for way, call in ways.items():
        if way not in TARGETS[target].ways:
            message = f"{way}: the model was quantized for target {target!r}, and it is for 'x86'"
            with pytest.raises(fxquant.LoweringError, match=message):
                call()
    mine = fxquant.Target(name="mine")
    with pytest.raises(fxquant.LoweringError, match=f"target {target!r}, and target 'mine' is "):
        fxquant.export_onnx(quantized, tmp_path / "a", torch.randn(2, 4), target=mine)


@pytest.mark.parametrize("options", [{"target": "layers"}, {"end_bits": 8}])
def test_the_ends_may_have_eight_bits(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for rules, bits in (([], [8, 3, 8]), ([fxquant.Rule("0", weights=2)], [2, 3, 8])):
        recipe = Recipe.minmax(weight_bits=3, activation_bits=4, rules=rules, **options)
        rows = fxquant.report(fxquant.quantize(model, [torch.randn(8, 4)], recipe)).rows
        assert [int(row.weights[0]) for row in rows] == bits
        assert [int(row.inputs[0]) for row in rows] == [8 if not rules else 4, 4, 8]
