"""The float layer that serves quantized inputs best, as far as samples set aside confirm."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation, Clamp, Differentiated, Identity
from fxquant.rounding.methods.losses import Rows
from fxquant.rounding.methods.refit import Refit, refit

ACTIVATIONS = {
    "none": Identity(),
    "relu": Clamp(),
    "relu6": Clamp(0.0, 1.0),
    "gelu": Differentiated(F.gelu),
}


def made(
    activation: Activation,
    *,
    learned: int = 4000,
    noise: float = 0.5,
    gain: float = 1.5,
    groups: int = 1,
    size: int = 16,
    seed: int = 0,
) -> tuple[Rounding, Rows, Rows]:
    """Return a layer and rows of it, whose inputs are x · gain + noise."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, 8, size, generator=generator) / math.sqrt(size)
    x = torch.randn(groups, learned + 2000, size, generator=generator)
    targets = activation(x @ weight.mT + 0.1)
    inputs = gain * x + noise * torch.randn(x.shape, generator=generator)
    rows = (inputs, inputs @ weight.mT + 0.1, targets)
    affine = Affine(
        torch.full((groups, 8, 1), 0.1), torch.zeros(groups, 8, 1), Grid.of(8, signed=True)
    )
    first, rest = (
        Rows(*(each[:, part] for each in rows)) for part in (slice(learned), slice(learned, None))
    )
    return Rounding(weight, affine), first, rest


def error(found: Refit, before: Rounding, rows: Rows, activation: Activation) -> float:
    change = found.rounding.weight - before.weight
    return float(rows.error(change, activation, found.shift)[0])


def least_squares(rows: Rows) -> Tensor:
    inputs, targets = F.pad(rows.inputs, (0, 1), value=1.0), rows.targets
    solution: Tensor = torch.linalg.lstsq(inputs, targets).solution
    return solution.mT[:, :, :-1]


@pytest.mark.parametrize("groups", [1, 3])
def test_of_many_rows_it_is_the_regression(groups: int) -> None:
    layer, rows, judged = made(Identity(), groups=groups)
    found = refit(layer, rows, judged, Identity())
    torch.testing.assert_close(found.rounding.weight, least_squares(rows), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_serves_new_rows_better_than_the_layer_itself(name: str) -> None:
    activation = ACTIVATIONS[name]
    layer, rows, judged = made(activation)
    _, _, new = made(activation, seed=0, learned=4000)
    found = refit(layer, rows, judged, activation)
    unchanged = Refit(layer, layer, torch.zeros(1, 8), None)
    assert error(found, layer, new, activation) < 0.9 * error(unchanged, layer, new, activation)


def test_of_few_rows_it_follows_the_inputs_less() -> None:
    shares = []
    for learned in (4000, 24):
        layer, rows, judged = made(Identity(), learned=learned, size=32)
        found = refit(layer, rows, judged, Identity())
        assert error(found, layer, judged, Identity()) <= error(
            Refit(layer, layer, torch.zeros(1, 8), None), layer, judged, Identity()
        )
        shares.append(math.inf if found.share is None else found.share)
    assert shares[1] >= 10 * shares[0]


def test_where_nothing_is_confirmed_the_layer_stays() -> None:
    layer, rows, judged = made(Identity(), learned=24)
    misleading = Rows(rows.inputs, rows.outputs, rows.targets + 5 * torch.randn(1, 24, 8))
    misleading.targets.sub_(5.0)
    found = refit(layer, misleading, judged, Identity())
    assert found.rounding is layer
    assert not found.shift.any()


def test_float_inputs_need_nothing() -> None:
    layer, rows, judged = made(Clamp(), noise=0.0, gain=1.0)
    found = refit(layer, rows, judged, Clamp())
    assert found.rounding is layer


def test_pruned_weights_stay_zero() -> None:
    layer, rows, judged = made(Identity())
    layer.weight[:, ::2, ::3] = 0
    rows, judged = (
        Rows(each.inputs, each.inputs @ layer.weight.mT, each.targets) for each in (rows, judged)
    )
    found = refit(layer, rows, judged, Identity())
    assert found.share is not None
    assert not found.rounding.weight[:, ::2, ::3].any()


def test_constant_inputs_leave_the_weight_alone() -> None:
    layer, rows, judged = made(Identity())
    rows, judged = (
        Rows(torch.zeros_like(each.inputs), torch.zeros_like(each.outputs), each.targets + 3)
        for each in (rows, judged)
    )
    found = refit(layer, rows, judged, Identity())
    torch.testing.assert_close(found.rounding.weight, layer.weight)
    torch.testing.assert_close(found.shift, torch.full((1, 8), 3.1), rtol=0, atol=0.1)


def test_rows_are_those_of_the_layer_as_it_should_be() -> None:
    layer, rows, judged = made(Clamp())
    found = refit(layer, rows, judged, Clamp())
    y = rows.inputs @ found.rounding.weight.mT + 0.1 + found.shift[:, None]
    for share in (None, 0.1, 0.001):
        new = replace(found, share=share).rows(rows, Clamp())
        torch.testing.assert_close(new.outputs, y, rtol=0, atol=1e-4)
        wanted = rows.targets if share == 0.001 else y.clamp(min=0)
        torch.testing.assert_close(new.targets, wanted, rtol=0, atol=1e-4)
