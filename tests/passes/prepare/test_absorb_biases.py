"""AbsorbBiases moves what a ReLU never cuts off into the next layer's bias."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Pipeline, Recipe
from fxquant.graph.records import record
from fxquant.passes import AbsorbBiases, EqualizeLayers, FoldBatchNorm
from tests.helpers import Net, apply, node, outputs, refusals, relative_error


def network(
    second: nn.Module | None = None, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return a network whose first batch norm lifts half of its channels far above zero."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    norm = nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        y = first(batch())
        norm.running_mean = y.mean((0, 2, 3))
        norm.running_var = y.var((0, 2, 3))
        norm.bias[::2] = 20.0
    second = nn.Conv2d(8, 4, 3) if second is None else second
    return nn.Sequential(first, norm, activation(), second).eval()


def batch(size: int = 64) -> Tensor:
    return torch.randn(size, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "second",
    [nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
     nn.Conv2d(8, 8, 3, groups=4, bias=False)],
    ids=["conv", "reflect", "grouped, no bias"],
)  # fmt: skip
def test_the_activation_comes_down_and_outputs_stay(second: nn.Conv2d) -> None:
    second.reset_parameters()  # from the test's seed: it was made before
    model, x = network(second), batch()
    gm = fxquant.trace(model)
    FoldBatchNorm()(gm)
    lifted = F.relu(gm.get_submodule("0")(x)).amax((0, 2, 3))
    assert apply(AbsorbBiases(), gm)
    lowered = F.relu(gm.get_submodule("0")(x)).amax((0, 2, 3))
    torch.testing.assert_close(lifted[::2] - lowered[::2], torch.full((4,), 17.0), atol=0.1, rtol=0)
    torch.testing.assert_close(lifted[1::2], lowered[1::2])
    assert relative_error(outputs(gm, x), outputs(model, x)) < 0.02  # one value in a thousand
    moments = record(node(gm, "_0")).moments
    assert moments is not None
    torch.testing.assert_close(moments[0][::2], torch.full((4,), 3.0), atol=0.1, rtol=0)
    assert not apply(AbsorbBiases(), gm)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (nn.Conv2d(8, 4, 3, padding=1), "it pads with zeros"),
        (nn.Conv2d(8, 4, 3, padding="same"), "it pads with zeros"),
        (nn.ConvTranspose2d(8, 4, 3), "a transposed convolution leaves out taps"),
    ],
)
def test_says_where_the_border_would_be_wrong(second: nn.Module, reason: str) -> None:
    gm = fxquant.trace(network(second))
    FoldBatchNorm()(gm)
    before = outputs(gm, batch())
    assert not apply(AbsorbBiases(), gm)
    assert any(f"bias not absorbed: _3: {reason}" in each for each in refusals(gm)["_0"])
    assert torch.equal(outputs(gm, batch()), before)


def test_leaves_alone_what_it_knows_nothing_of_and_what_cuts_nothing_off() -> None:
    gm = fxquant.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    assert not apply(AbsorbBiases(), gm)
    gm = fxquant.trace(network(activation=nn.LeakyReLU))
    FoldBatchNorm()(gm)
    assert not apply(AbsorbBiases(), gm)


def test_a_result_that_branches_is_left_alone() -> None:
    first, norm = network()[0], network()[1]
    model = Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))) + m.c(F.relu(m.n(m.a(x)))), a=first, n=norm,
                b=nn.Conv2d(8, 4, 3), c=nn.Conv2d(8, 4, 3)).eval()  # fmt: skip
    gm = fxquant.trace(model)
    FoldBatchNorm()(gm)
    assert not apply(AbsorbBiases(), gm)


def test_the_recipe_equalizes_and_absorbs() -> None:
    model, x = network(), batch()
    norm, second = model[1], model[3]
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(second, nn.Conv2d)
    with torch.no_grad():  # wild ranges: one scale for all channels loses the small ones
        norm.weight[::2] *= 40
        second.weight[:, ::2] /= 40
    errors = []
    for equalization in (False, True):
        recipe = Recipe(weights=fxquant.TensorSpec(symmetric=True), equalization=equalization)
        quantized = fxquant.quantize(model, [x], recipe, example_inputs=x)
        errors.append((outputs(quantized, x) - outputs(model, x)).square().mean())
    assert errors[1] < 0.3 * errors[0]


def test_works_behind_equalization_in_a_pipeline() -> None:
    model, x = network(), batch()
    gm = fxquant.trace(model)
    Pipeline(FoldBatchNorm(), EqualizeLayers(), AbsorbBiases())(gm)
    assert relative_error(outputs(gm, x), outputs(model, x)) < 0.02


def test_a_clip_that_would_have_to_move_is_named_where_a_channel_would() -> None:
    gm = fxquant.trace(network(activation=nn.ReLU6))
    FoldBatchNorm()(gm)
    assert not apply(AbsorbBiases(), gm)
    assert refusals(gm)["_0"] == ("bias not absorbed: _2 clips at values that would have to move",)
    model = network(activation=nn.ReLU6)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.reset_parameters()  # biases are 0 and deviations 1: nothing is far above zero
    gm = fxquant.trace(model)
    FoldBatchNorm()(gm)
    assert not apply(AbsorbBiases(), gm)
    assert not refusals(gm)
