"""Channels between two layers get the same range in both weights; outputs stay."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from fxquant import Pipeline, Recipe
from fxquant.graph.records import record
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.layers import Layer, input_rows, output_rows
from fxquant.numerics.decibels import sqnr
from fxquant.passes import EqualizeLayers, FoldBatchNorm, MarkFusedRelu, QuantizeWeights
from tests.helpers import Net, apply, graph_text, node, outputs, refusals, relative_error


def two_convs(activation: Any = F.relu, **parts: Any) -> Net:
    torch.manual_seed(0)
    parts = {
        "conv1": nn.Conv2d(3, 8, 3, padding=1),
        "conv2": nn.Conv2d(8, 4, 3, padding=1),
        **parts,
    }
    return Net(lambda m, x: m.conv2(activation(m.conv1(x))), **parts)


def batch() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def ranges(gm: nn.Module, first: str = "conv1", second: str = "conv2") -> tuple[Tensor, Tensor]:
    """Return the largest |weight| that makes each channel, and the largest that meets it."""
    made, met = (cast(Layer, gm.get_submodule(name)) for name in (first, second))
    return (
        output_rows(made, made.weight.detach()).abs().amax(1),
        input_rows(met, met.weight.detach()).abs().amax(1),
    )


def check(model: nn.Module, **names: str) -> None:
    """Check that the pass makes both ranges the geometric mean of what they were."""
    gm, x = fxquant.trace(model), batch()
    made, met = ranges(gm, **names)
    text, expected = graph_text(gm), outputs(gm, x)
    assert apply(EqualizeLayers(tolerance=1e-4), gm)
    assert graph_text(gm) == text
    assert relative_error(outputs(gm, x), expected) < 1e-5
    for found in ranges(gm, **names):
        torch.testing.assert_close(found, (made * met).sqrt(), rtol=1e-3, atol=0)
    assert not apply(EqualizeLayers(tolerance=1e-3), gm)


@pytest.mark.parametrize(
    "activation",
    [F.relu, lambda x: F.leaky_relu(x, 0.1), lambda x: F.max_pool2d(F.relu(x), 2), lambda x: x],
    ids=["relu", "leaky relu", "relu, pool", "nothing"],
)
def test_both_ranges_become_their_geometric_mean_and_outputs_stay(activation: Any) -> None:
    check(two_convs(activation))


@pytest.mark.parametrize(
    "conv2",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.ConvTranspose2d(8, 4, 2, groups=4),
    ],
    ids=["depthwise", "grouped", "transposed", "transposed, grouped"],
)
def test_the_second_layer_may_be_of_any_kind(conv2: nn.Module) -> None:
    check(two_convs(conv2=conv2))


def test_linear_layers_are_equalized_too() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.fc2(F.relu(m.fc1(x.flatten(1)))), fc1=nn.Linear(192, 8), fc2=nn.Linear(8, 4)
    )
    check(model, first="fc1", second="fc2")


@pytest.mark.parametrize(
    ("second", "between"),
    [
        (nn.Linear(8, 4), lambda x: x),  # on the last axis, the images' width
        (nn.Linear(8, 4), lambda x: F.max_pool2d(x, 1)),
    ],
)
def test_layers_on_other_axes_are_no_pair(second: nn.Module, between: Any) -> None:
    gm = fxquant.trace(two_convs(between, conv2=second))
    assert not apply(EqualizeLayers(), gm)
    assert refusals(gm)["conv1"] == (
        "not equalized: conv1 and conv2 have their channels along other axes",
    )


def test_a_pool_takes_positions_for_the_channels_of_a_linear_layer() -> None:
    model = Net(
        lambda m, x: m.b(F.avg_pool1d(m.a(x), 3, 1, 1)), a=nn.Linear(8, 6), b=nn.Linear(6, 2)
    )
    assert not apply(EqualizeLayers(), fxquant.trace(model))


def test_pairs_of_a_chain_take_turns_until_nothing_moves() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(8, 8, 3, groups=8),
        c=nn.Conv2d(8, 4, 1),
    )
    gm, x = fxquant.trace(model), batch()
    expected = outputs(gm, x)
    apply(EqualizeLayers(), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    for pair in (("a", "b"), ("b", "c")):
        torch.testing.assert_close(*ranges(gm, *pair), rtol=0.05, atol=0)


def test_brings_back_what_one_scale_for_wild_channels_loses() -> None:
    model: Any = two_convs()
    x = batch()
    with torch.no_grad():
        wild = 10 ** torch.linspace(-2, 2, 8)
        model.conv1.weight *= wild[:, None, None, None]
        model.conv1.bias *= wild
        model.conv2.weight /= wild[None, :, None, None]
    expected = outputs(fxquant.trace(model), x)
    recipe = Recipe(weights=fxquant.TensorSpec(symmetric=True), activations=None)
    lost = []
    for passes in ([], [EqualizeLayers()]):
        gm = fxquant.trace(model)
        Pipeline(*passes, QuantizeWeights(recipe))(gm)
        lost.append(sqnr(expected, outputs(gm, x)))
    assert lost[0] < 10
    assert lost[1] > 35


def test_the_moments_that_batch_norm_told_follow() -> None:
    model = Net(
        lambda m, x: m.conv2(F.relu(m.bn(m.conv1(x)))),
        conv1=nn.Conv2d(3, 8, 3),
        bn=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 4, 3),
    )
    gm = fxquant.trace(model)
    apply(FoldBatchNorm(), gm)
    before, bias = record(node(gm, "conv1")).moments, gm.get_submodule("conv1").bias
    apply(EqualizeLayers(), gm)
    after, new_bias = record(node(gm, "conv1")).moments, gm.get_submodule("conv1").bias
    assert before is not None
    assert after is not None
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other / one, cast(Tensor, new_bias) / cast(Tensor, bias))


def test_dead_channels_stay_as_they_are() -> None:
    model: Any = two_convs()
    x = batch()
    with torch.no_grad():
        model.conv1.weight[0], model.conv1.bias[0] = 0.0, 0.0
        model.conv2.weight[:, 1] = 0.0
    gm = fxquant.trace(model)
    expected = outputs(gm, x)
    apply(EqualizeLayers(), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5


def test_the_callers_model_stays_as_it_is() -> None:
    model = two_convs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply(EqualizeLayers(), fxquant.trace(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def hooked() -> nn.Module:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    conv.register_forward_hook(lambda *_: None)
    return conv


SHARED = nn.Conv2d(8, 8, 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (two_convs(conv1=hooked()), "its Conv2d has forward hooks, which may use its parameters"),
        (
            Net(lambda m, x: m.b(F.relu(m.b(m.a(x)))), a=nn.Conv2d(3, 8, 1), b=SHARED),
            "b is called 2 times",
        ),
        (
            two_convs(lambda x: F.relu(x).mean(3), conv2=nn.Linear(8, 2)),
            None,
        ),
    ],
    ids=["hooks", "shared", "mean"],
)
def test_says_why_a_pair_is_not_equalized(model: nn.Module, reason: str | None) -> None:
    gm = fxquant.trace(model)
    assert not apply(EqualizeLayers(), gm)
    expected = {f"not equalized: {reason}"} if reason else set()
    assert {each for reasons in refusals(gm).values() for each in reasons} == expected


def test_a_result_that_branches_is_left_alone() -> None:
    model = Net(
        lambda m, x: m.conv2(y := F.relu(m.conv1(x))) + y,
        conv1=nn.Conv2d(3, 8, 1),
        conv2=nn.Conv2d(8, 8, 1),
    )
    gm = fxquant.trace(model)
    assert not apply(EqualizeLayers(), gm)
    assert not refusals(gm)


CLIPS = {
    "relu6": F.relu6,
    "ReLU6": nn.ReLU6(inplace=True),
    "Hardtanh": nn.Hardtanh(),
    "hardtanh_": lambda x: F.hardtanh_(x, -2.0, 0.5),
    "clamp": lambda x: x.clamp(max=0.5),
    "clip, pool": lambda x: F.max_pool2d(torch.clip(x, 0.1, 1.0), 2),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_moves_with_its_channels(name: str) -> None:
    gm, x = fxquant.trace(two_convs(CLIPS[name])), batch()
    _, met = ranges(gm)
    expected = outputs(gm, x)
    assert apply(EqualizeLayers(tolerance=1e-4), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    _, equalized = ranges(gm)
    assert equalized.max() / equalized.min() < met.max() / met.min()
    assert sum(isinstance(module, ChannelClamp) for module in gm.modules()) == 1
    assert not apply(EqualizeLayers(tolerance=1e-3), gm)


def test_a_clamp_by_channel_stands_behind_one_by_numbers() -> None:
    torch.manual_seed(0)
    model: Any = two_convs(F.relu6)
    model.conv1.weight.data[:2] *= torch.tensor([0.1, 10.0])[:, None, None, None]
    gm, x = fxquant.trace(model), batch()
    apply(Pipeline(MarkFusedRelu(), EqualizeLayers()), gm)
    bounds = cast(Tensor, gm.get_submodule("relu6_clamp").high)
    top = float(bounds.max())
    assert (
        graph_text(gm)
        == f"""\
x = input()
conv1 = self.conv1(x) # Conv2d · fused: relu6
relu6 = F.hardtanh(conv1, 0.0, {top}) # fused into conv1
relu6_clamp = self.relu6_clamp(relu6) # ChannelClamp 8 channels, within 0 … {top:.4g}
conv2 = self.conv2(relu6_clamp) # Conv2d
return conv2"""
    )
    assert record(node(gm, "conv1")).clamp == (0.0, top)
    scaled = outputs(gm, x * 100)  # where it clips nearly everywhere
    assert relative_error(scaled, outputs(fxquant.trace(model), x * 100)) < 1e-5


def test_equal_channels_need_no_clamp_of_their_own() -> None:
    model: Any = two_convs(F.relu6)
    with torch.no_grad():
        model.conv1.weight.fill_(1.0)
        model.conv2.weight.fill_(0.25)
    gm, x = fxquant.trace(model), batch()
    expected = outputs(gm, x)
    assert apply(EqualizeLayers(), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    assert record(node(gm, "conv1")).relu is None
    assert not any(isinstance(module, ChannelClamp) for module in gm.modules())
    assert node(gm, "relu6").args[1:] == (0.0, 3.0)


@pytest.mark.parametrize("name", CLIPS)
def test_a_quantized_model_with_moved_clips_is_lowered_exported_and_saved(
    name: str, tmp_path: Path
) -> None:
    x = batch()
    recipe = Recipe(weights=fxquant.TensorSpec(symmetric=True), equalization=True)
    quantized = fxquant.quantize(two_convs(CLIPS[name]), [x], recipe)
    with torch.no_grad():
        expected = quantized(x)
        torch.testing.assert_close(fxquant.to_qdq(quantized)(x), expected, rtol=0, atol=1e-5)
        fxquant.save(quantized, tmp_path / "model.pt")
        assert torch.equal(fxquant.load(tmp_path / "model.pt")(x), expected)
        torch.testing.assert_close(
            quantized.to(torch.float64)(x.double()).float(), expected, rtol=0, atol=0.05
        )


@pytest.mark.parametrize("activation", [F.relu, F.relu6])
def test_a_channel_that_is_constant_takes_no_range_from_the_others(activation: Any) -> None:
    model: Any = two_convs(activation)
    with torch.no_grad():
        model.conv1.weight[0] *= 1e-8
        model.conv1.bias[0] = 1.0
    gm, x = fxquant.trace(model), batch()
    expected = outputs(gm, x)
    apply(EqualizeLayers(), gm)
    assert relative_error(outputs(gm, x), expected) < 1e-5
    assert cast(Tensor, gm.get_submodule("conv1").bias).abs().max() < 10


def test_one_scale_serves_wild_channels_behind_a_clip() -> None:
    model: Any = two_convs(F.relu6, conv2=nn.Conv2d(8, 8, 3, groups=8))
    x = batch()
    with torch.no_grad():
        model.conv2.weight *= (10 ** torch.linspace(-1, 1, 8))[:, None, None, None]
    one_scale: dict[str, Any] = {"weights": fxquant.TensorSpec(symmetric=True)}
    expected = outputs(model, x)
    lost = [
        sqnr(expected[:, 0], outputs(fxquant.quantize(model, [x], recipe), x)[:, 0])
        for recipe in (Recipe(**one_scale), Recipe(**one_scale, equalization=True))
    ]
    assert lost[1] > lost[0] + 6


def test_a_second_run_knows_where_a_clamp_with_one_end_clips() -> None:
    gm = fxquant.trace(two_convs(lambda x: x.clamp(max=0.5)))
    apply(EqualizeLayers(tolerance=1e-4), gm)
    cast(Layer, gm.get_submodule("conv2")).weight.data[:, 0] *= (
        100  # so that there is something to do again
    )
    expected = outputs(gm, batch())
    assert apply(EqualizeLayers(tolerance=1e-4), gm)
    assert relative_error(outputs(gm, batch()), expected) < 1e-5
