"""The weight's layout, checked by its effect: what scaling a weight does to inputs and outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from fxquant.modules.layers import (
    LAYERS,
    Layer,
    channel_axis,
    is_transposed,
    layer_type,
    num_groups,
    num_inputs,
    num_outputs,
    output_rows,
    per_input,
    per_output,
)
from tests.layer_kinds import KINDS, make_input, make_layer

each_kind = pytest.mark.parametrize(("kind", "options"), KINDS)


def call_with(layer: Layer, weight: Tensor, x: Tensor) -> Tensor:
    return functional_call(layer, {"weight": weight}, x)  # type: ignore[no-any-return]


def along(axis: int, values: Tensor) -> Tensor:
    """Return `values` shaped to broadcast along `axis`, which counts from the end."""
    return values.reshape(-1, *[1] * (-1 - axis))


@each_kind
def test_per_output_scales_the_layers_output_channels(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer = make_layer(kind, options, bias=False)
    x, scale = make_input(layer), torch.rand(8) + 0.5
    scaled = call_with(layer, layer.weight * per_output(layer, scale, layer.weight), x)
    torch.testing.assert_close(scaled, layer(x) * along(channel_axis(layer), scale))


@each_kind
def test_per_input_scales_the_layers_input_channels(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer = make_layer(kind, options)
    x, scale = make_input(layer), torch.rand(4) + 0.5
    scaled = call_with(layer, layer.weight * per_input(layer, scale, layer.weight), x)
    torch.testing.assert_close(scaled, layer(x * along(channel_axis(layer), scale)))


@each_kind
def test_an_output_row_holds_the_weights_of_that_output(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer = make_layer(kind, options, bias=False)
    marked = torch.ones_like(layer.weight) * per_output(layer, torch.arange(8.0), layer.weight)
    rows = output_rows(layer, marked)
    assert rows.shape == (8, layer.weight.numel() // 8)
    assert torch.equal(rows, torch.arange(8.0)[:, None].expand_as(rows))


@each_kind
def test_an_output_row_sums_to_the_output_for_ones(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    """With a kernel of 1 an output is its row's sum: no weight is lost or counted twice."""
    one = {} if kind is nn.Linear else {"kernel_size": 1}
    layer = make_layer(kind, options, bias=False, **one)
    output = layer(torch.ones_like(make_input(layer)))
    sums = output_rows(layer, layer.weight).sum(dim=1)
    torch.testing.assert_close(output, along(channel_axis(layer), sums).expand_as(output))


@each_kind
def test_one_value_for_the_whole_tensor_stays_a_scalar(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    layer = make_layer(kind, options)
    assert per_output(layer, torch.tensor(2.0), layer.weight).shape == ()


@each_kind
def test_counts_of_channels_and_groups(kind: type[nn.Module], options: dict[str, Any]) -> None:
    layer = make_layer(kind, options)
    assert (num_inputs(layer), num_outputs(layer)) == (4, 8)
    assert num_groups(layer) == options.get("groups", 1)
    assert is_transposed(layer) == ("Transpose" in kind.__name__)
    assert layer(make_input(layer)).shape[channel_axis(layer)] == 8


class Renamed(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)


class OtherForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OtherConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(x, weight / weight.norm(), bias)
        return output


class OtherLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class OtherTransposed(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size) + 1


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_of_its_own_type(kind: type[nn.Module]) -> None:
    assert layer_type(make_layer(kind, {})) is kind


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Renamed(4), nn.Conv2d),
        (nn.MultiheadAttention(4, 2).out_proj, nn.Linear),
        (parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear),
    ],
    ids=["renamed", "out_proj", "weight_norm"],
)
def test_a_subclass_that_computes_the_same_counts(module: nn.Module, kind: type[nn.Module]) -> None:
    assert layer_type(module) is kind


@pytest.mark.parametrize(
    "module",
    [
        OtherForward(4, 4, 3),
        OtherConvForward(4, 4, 3),
        OtherLinear(4, 4),
        OtherTransposed(4, 4, 3),
        nn.Bilinear(4, 4, 4),
        nn.ReLU(),
        None,
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_computes_something_else_has_no_type(module: nn.Module | None) -> None:
    assert layer_type(module) is None


def test_a_layer_whose_forward_was_replaced_has_no_type() -> None:
    layer = nn.Conv2d(4, 4, 3)
    layer.__dict__["forward"] = lambda x: nn.Conv2d.forward(layer, x) + 1
    assert layer_type(layer) is None
