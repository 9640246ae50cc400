"""A layer's rounding in grouped form says the same as the layer itself."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import quantize_layer
from fxquant.recipe.spec import TensorSpec
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.rows import grouped_weight
from tests.layer_kinds import KINDS, make_layer

SPECS = [
    TensorSpec(bits=3, symmetric=symmetric, per_channel=per_channel)
    for symmetric in (True, False)
    for per_channel in (True, False)
]


@pytest.mark.parametrize(
    "spec", SPECS, ids=["symmetric-channel", "symmetric-tensor", "channel", "tensor"]
)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_nearest_rounding_is_what_the_layer_has(
    kind: type[nn.Module], options: dict[str, Any], spec: TensorSpec
) -> None:
    reference = make_layer(kind, options)
    layer = quantize_layer(reference, spec)
    rounding = Rounding.of(layer, reference)
    nearest = rounding.nearest()
    assert torch.equal(rounding.layer_integers(layer, nearest), layer.weight_integers)
    assert (nearest >= rounding.affine.lowest).all()
    assert (nearest <= rounding.affine.highest).all()
    assert ((rounding.affine.highest - rounding.affine.lowest) == 7).all()
    error = grouped_weight(cast(Layer, layer), layer.weight - reference.weight.detach())
    torch.testing.assert_close(nearest * rounding.affine.scale - rounding.weight, error)
