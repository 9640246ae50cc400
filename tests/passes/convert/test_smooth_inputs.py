"""Wide channels of a linear layer's input are brought to the others' range; outputs stay."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import CalibrationError, PassError, Recipe, TensorSpec
from fxquant.modules.batchnorm import fold_before
from fxquant.modules.by_channel import ChannelAffine
from fxquant.modules.observers import Observer
from fxquant.numerics.decibels import sqnr
from fxquant.passes import InsertObservers, SmoothInputs
from tests.helpers import Net, apply, graph_text, outputs, relative_error

WIDE = torch.tensor([100.0, 1.0, 1.0, 30.0, 1.0, 1.0, 1.0, 1.0])


class Block(nn.Module):
    """A norm, and a GELU, each with wide channels, in front of linear layers."""

    def __init__(self, *, has_residual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(8)
        self.query, self.fc1 = nn.Linear(8, 8), nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 4)
        self.has_residual = has_residual
        with torch.no_grad():
            self.norm.weight.mul_(WIDE)
            self.norm.bias.add_(5.0)
            for layer in (self.query, self.fc1):
                layer.weight.div_(WIDE)
            self.fc1.weight[3].mul_(50)
            self.fc2.weight[:, 3].div_(50)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        hidden: Tensor = self.fc2(F.gelu(self.fc1(x))) + self.query(x)[..., :4]
        return hidden + 0.01 * x[..., :4] if self.has_residual else hidden


def batch(seed: int = 1) -> Tensor:
    return torch.randn(16, 5, 8, generator=torch.Generator().manual_seed(seed))


def observed(model: nn.Module, recipe: Recipe, *batches: Tensor) -> torch.fx.GraphModule:
    gm = fxquant.trace(model)
    apply(InsertObservers(recipe), gm)
    for each in batches:
        outputs(gm, each)
    return gm


@pytest.mark.parametrize("has_residual", [False, True])
def test_outputs_stay_and_channels_come_to_one_range(has_residual: bool) -> None:
    model, x = Block(has_residual=has_residual), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gm = observed(model, Recipe(), x)
    expected = outputs(gm, x)
    assert apply(SmoothInputs(Recipe(), [(x,)]), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    affine = [module for module in gm.modules() if isinstance(module, ChannelAffine)]
    assert len(affine) == 1 + has_residual  # the norm takes its own, unless others read it
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not apply(SmoothInputs(Recipe(), [(x,)]), gm)


def test_the_graph_before_and_after() -> None:
    model, x = Net(lambda m, x: m.fc(F.gelu(x)), fc=nn.Linear(8, 2)), batch() * WIDE
    gm = observed(model, Recipe(), x)
    assert apply(SmoothInputs(Recipe(), [(x,)]), gm)
    affine = cast(ChannelAffine, gm.get_submodule("smoothing.gelu"))
    assert graph_text(gm).splitlines()[:4] == [
        "x = input()",
        "gelu = F.gelu(x)",
        f"smoothed_gelu = self.smoothing.gelu(gelu) # ChannelAffine {affine.extra_repr()}",
        "observers_gelu = self.observers.gelu(smoothed_gelu) # Observer 8 bits minmax",
    ]


def test_the_observer_has_seen_what_goes_by_now() -> None:
    model, batches = Block(), [batch(seed) for seed in range(3)]
    gm = observed(model, Recipe(), *batches)
    apply(SmoothInputs(Recipe(), [(each,) for each in batches]), gm)
    again = {n: m for n, m in gm.named_modules() if isinstance(m, Observer)}
    seen = {n: (float(m.low), float(m.high), int(m.num_batches)) for n, m in again.items()}
    for module in again.values():
        module.low.fill_(torch.inf), module.high.fill_(-torch.inf), module.num_batches.zero_()
    for each in batches:
        outputs(gm, each)
    for name, module in again.items():
        found = (float(module.low), float(module.high), int(module.num_batches))
        assert found == pytest.approx(seen[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("recipe", [Recipe.minmax, Recipe.aciq, Recipe.adaround])
def test_brings_back_what_wide_channels_cost(recipe: Any) -> None:
    model, x = Block(), batch()
    expected = outputs(model, x)
    lost = [
        sqnr(expected, outputs(fxquant.quantize(model, [x], recipe(weight_bits=8, **each)), x))
        for each in ({}, {"smoothing": True})
    ]
    assert lost[1] > lost[0] + 6


def test_a_tensor_that_gains_nothing_stays() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2)), torch.randn(256, 64)
    gm = observed(model, Recipe(), x)
    text = graph_text(gm)
    assert not apply(SmoothInputs(Recipe(), [(x,)]), gm)
    assert graph_text(gm) == text


@pytest.mark.parametrize(
    "model",
    [
        Net(lambda m, x: m.fc(x) + m.fc(x + 1), fc=nn.Linear(8, 2)),
        Net(
            lambda m, x: m.conv(x.mT),
            conv=nn.Conv1d(8, 2, 1),
        ),
        Net(lambda m, x: (y := F.relu(x)) + m.fc(y), fc=nn.Linear(8, 8)),
    ],
    ids=["called twice", "convolution", "an addition on integers"],
)
def test_what_others_read_or_change_is_left_alone(model: nn.Module) -> None:
    x = batch() * WIDE
    gm = observed(model, Recipe(), x)
    expected = outputs(gm, x)
    apply(SmoothInputs(Recipe(), [(x,)]), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5


def test_no_data_is_an_error() -> None:
    gm = observed(Block(), Recipe(), batch())
    with pytest.raises(CalibrationError, match="`batches` is empty"):
        SmoothInputs(Recipe(), [])(gm)


@pytest.mark.parametrize("has_residual", [False, True])
def test_a_smoothed_model_is_lowered_exported_and_saved(has_residual: bool, tmp_path: Path) -> None:
    model, x = Block(has_residual=has_residual), batch()
    quantized = fxquant.quantize(model, [x], Recipe.minmax(smoothing=True))
    expected = outputs(quantized, x)
    torch.testing.assert_close(outputs(fxquant.to_qdq(quantized), x), expected, rtol=0, atol=1e-4)
    fxquant.save(quantized, tmp_path / "model.pt")
    assert torch.equal(outputs(fxquant.load(tmp_path / "model.pt"), x), expected)
    assert "smoothed" in fxquant.text(quantized)


def separable(between: Any, *, pool: bool = False) -> nn.Module:
    """Return convolutions whose inner channels are up to 50 times as wide as others."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
    with torch.no_grad():
        width = torch.logspace(-1, 0.7, 16)[torch.randperm(16)]
        first.weight.mul_(width[:, None, None, None])
        first.bias = nn.Parameter(width.clone())
        second.weight.div_(width[:, None, None, None])
    pools = [nn.MaxPool2d(2)] if pool else []
    model = nn.Sequential(first, between, second, between, *pools, nn.Conv2d(16, 8, 1))
    return model.eval()


@pytest.mark.parametrize("target", ["x86", "layers"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 3.0)], ids=str)
def test_between_convolutions_the_layer_before_takes_the_scale(
    between: nn.Module, pool: bool, target: Any
) -> None:
    x = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    model, recipe = separable(between, pool=pool), Recipe(target=target)
    gm = observed(model, recipe, x)
    expected = outputs(gm, x)
    assert apply(SmoothInputs(recipe, [(x,)]), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    assert not any(isinstance(module, ChannelAffine) for module in gm.modules())
    assert relative_error(outputs(model, x), expected) == 0  # the caller's model is as it was


@pytest.mark.parametrize("target", ["x86", "layers"])
@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU6()], ids=str)
def test_few_bits_between_convolutions_lose_less(between: nn.Module, target: Any) -> None:
    x = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    model = separable(between)
    expected, lost = outputs(model, x), []
    for smoothing in (False, True):
        bits = TensorSpec(bits=4, range="mse")
        recipe = Recipe(activations=bits, end_bits=8, target=target, smoothing=smoothing)
        lost.append(sqnr(expected, outputs(fxquant.quantize(model, [x], recipe), x)))
    assert lost[1] > lost[0] + 3


def test_a_smoothed_separable_network_is_lowered() -> None:
    x = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    quantized = fxquant.quantize(separable(nn.ReLU6()), [x], Recipe(smoothing=True))
    assert relative_error(outputs(fxquant.lower(quantized, x), x), outputs(quantized, x)) < 0.02


def test_inputs_without_a_batch_axis() -> None:
    model = Net(lambda m, x: m.fc(F.gelu(x)), fc=nn.Linear(8, 2))
    x = torch.randn(8, generator=torch.Generator().manual_seed(1)) * WIDE
    gm = observed(model, Recipe(), x)
    expected = outputs(gm, x)
    apply(SmoothInputs(Recipe(), [(x,)]), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5


@pytest.mark.parametrize("model", [Block(), Block(has_residual=True)])
def test_a_layer_that_gives_something_else_is_named(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.minmax(smoothing=True)
    gm = observed(model, recipe, batch())

    def fold_more(layer: Any, scale: Tensor, shift: Tensor) -> None:
        fold_before(layer, scale * 1.01, shift)

    monkeypatch.setattr("fxquant.passes.convert.smooth_inputs.fold_before", fold_more)
    with pytest.raises(PassError, match="fc1: on the first batch its results are no longer"):
        SmoothInputs(recipe, [(batch(),)])(gm)
