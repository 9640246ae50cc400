"""A layer's output at a position is its grouped weight times the sampled row."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fxquant.modules.layers import CONVS, TRANSPOSED_CONVS, Layer, num_groups
from fxquant.rounding.rows import grouped_weight, sample_rows, ungrouped_weight
from tests.layer_kinds import KINDS, make_input, make_layer

ALL = 10**6
SIDES = (7, 6, 5)

EVERYWHERE: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "1x1": {"kernel_size": 1},
    "even kernel": {"kernel_size": 2},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "padding": {"padding": 2},
    "all": {"stride": 2, "dilation": 2, "padding": 2, "groups": 2},
}
UNEVEN: dict[str, Any] = {
    "kernel_size": (2, 3, 1), "stride": (1, 2, 3), "padding": (1, 0, 0), "dilation": (3, 1, 2)
}  # fmt: skip
PADDED: dict[str, dict[str, Any]] = {
    "valid": {"padding": "valid"},
    "same": {"padding": "same"},
    "same, even": {"padding": "same", "kernel_size": 4},
    "same, dilated": {"padding": "same", "dilation": 2, "groups": 2},
    **{
        f"{mode}{', same, even' if more else ''}": {
            "padding_mode": mode,
            **(more or {"padding": 2}),
        }
        for mode in ("circular", "reflect", "replicate")
        for more in ({}, {"padding": "same", "kernel_size": 4})
    },
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    "output padding": {"stride": 2, "output_padding": 1},
    "output padding within dilation": {"stride": 2, "dilation": 3, "output_padding": 2},
    "padding beyond the kernel": {"kernel_size": 2, "padding": 2, "groups": 4},
    "all, transposed": {"stride": 3, "dilation": 2, "padding": 2, "output_padding": 2, "groups": 2},
}
CASES = [
    *[
        (kind, each, EVERYWHERE[each])
        for kind in (*CONVS, *TRANSPOSED_CONVS)
        for each in EVERYWHERE
    ],
    *[(kind, each, PADDED[each]) for kind in CONVS for each in PADDED],
    *[(kind, each, TRANSPOSED[each]) for kind in TRANSPOSED_CONVS for each in TRANSPOSED],
    *[
        (kind, "uneven", {name: values[:axes] for name, values in UNEVEN.items()})
        for kinds in (CONVS, TRANSPOSED_CONVS)
        for axes, kind in enumerate(kinds, start=1)
    ],
]


def draw(layer: Layer, x: Tensor, per_sample: int = ALL, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows, and the numbers of the output values that belong to them."""
    outputs = layer(x)
    numbers = torch.arange(outputs.numel(), dtype=torch.float32).reshape(outputs.shape)
    generator = torch.Generator().manual_seed(seed)
    return sample_rows(layer, x, numbers, per_sample, generator)


def assert_reproduces(layer: Layer, x: Tensor, per_sample: int = ALL) -> None:
    """Check every sampled row, and that all were taken, each once."""
    rows, numbers = draw(layer, x, per_sample)
    assert (rows.dtype, numbers.dtype) == (torch.float32, torch.float32)
    with torch.no_grad():
        product = rows @ grouped_weight(layer, layer.weight).float().mT
        if layer.bias is not None:
            product += layer.bias.reshape(num_groups(layer), 1, -1)
        outputs = layer(x).flatten()
    torch.testing.assert_close(product, outputs[numbers.long()].float(), atol=1e-5, rtol=1e-5)
    if per_sample == ALL:
        assert torch.equal(numbers.flatten().sort().values, torch.arange(float(outputs.numel())))


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_ungrouped_weight_is_the_inverse(kind: type[nn.Module], options: dict[str, Any]) -> None:
    layer = make_layer(kind, options)
    weight = torch.randn_like(layer.weight)
    grouped = grouped_weight(layer, weight)
    groups = num_groups(layer)
    assert grouped.shape == (groups, 8 // groups, weight.numel() // 8)
    assert torch.equal(ungrouped_weight(layer, grouped), weight)
    assert torch.equal(grouped_weight(layer, ungrouped_weight(layer, grouped + 1)), grouped + 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(kind, options, id=f"{kind.__name__}-{name}") for kind, name, options in CASES],
)
def test_rows_reproduce_a_convolution(kind: type[nn.Module], options: dict[str, Any]) -> None:
    layer = make_layer(kind, options)
    sides = SIDES[: layer.weight.dim() - 2]
    assert_reproduces(layer, torch.randn(2, 4, *sides))
    assert_reproduces(layer, torch.randn(2, 4, *sides), per_sample=3)
    assert_reproduces(layer, torch.randn(4, *sides))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (6,), (3, 5), (2, 3, 5)])
def test_rows_reproduce_a_linear_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(4, 8, bias=bias)
    assert_reproduces(layer, torch.randn(*shape, 4))
    assert_reproduces(layer, torch.randn(*shape, 4), per_sample=3)


@pytest.mark.parametrize("output_size", [(11, 11), (12, 11), (12, 12)])
def test_rows_reproduce_a_transposed_convolution_that_is_told_its_output_size(
    output_size: tuple[int, int],
) -> None:
    layer, x = nn.ConvTranspose2d(4, 8, 3, stride=2), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        outputs = layer(x, output_size=output_size)
        rows, taken = sample_rows(layer, x, outputs, ALL, torch.Generator())
        product = rows @ grouped_weight(layer, layer.weight).mT + cast(Tensor, layer.bias)
    torch.testing.assert_close(product, taken, atol=1e-5, rtol=1e-5)


def test_rows_of_channels_last_tensors_are_the_same() -> None:
    layer, x = nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.randn(2, 4, 7, 6)
    apart = sample_rows(layer, x, layer(x).detach(), 5, torch.Generator())
    last = x.to(memory_format=torch.channels_last)
    mixed = sample_rows(layer, last, layer(last).detach(), 5, torch.Generator())
    for one, other in zip(apart, mixed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d, nn.Linear])
def test_rows_are_float32(kind: type[nn.Module], dtype: torch.dtype) -> None:
    layer = make_layer(kind, {}).to(dtype)
    x = make_input(layer)
    rows, targets = sample_rows(layer, x, layer(x).detach(), 5, torch.Generator())
    assert (rows.dtype, targets.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(4, 8, 3), (3, 4, 8, 8)), (nn.Linear(4, 8), (3, 36, 4))],
    ids=["Conv2d", "Linear"],
)
@pytest.mark.parametrize("per_sample", [1, 5, 20])  # of 36: 1 is drawn another way than 5 and 20
def test_positions_differ_from_sample_to_sample(
    layer: Layer, shape: tuple[int, ...], per_sample: int
) -> None:
    x = torch.randn(1, *shape[1:]).expand(20, *shape[1:])
    rows, _ = draw(layer, x, per_sample)
    assert rows.shape[:2] == (1, 20 * per_sample)
    samples = {str(sample.tolist()) for sample in rows.reshape(20, per_sample, -1)}
    assert len(samples) > 10  # at random 20 draws of one out of 36 have about 15 different ones


def test_the_seed_decides_the_positions() -> None:
    layer, x = nn.Conv2d(4, 8, 3), torch.randn(3, 4, 8, 8)
    first, again, other = (draw(layer, x, 5, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_positions_of_a_sample_are_distinct_and_each_is_as_likely() -> None:
    layer, x = nn.Conv2d(1, 1, 1), torch.arange(9.0).reshape(1, 1, 3, 3).expand(3000, 1, 3, 3)
    rows, _ = draw(layer, x, per_sample=3)
    drawn = rows.reshape(3000, 3)
    assert all(len(set(sample)) == 3 for sample in drawn.tolist())
    assert (drawn.flatten().long().bincount() - 1000).abs().max() < 150  # five deviations
