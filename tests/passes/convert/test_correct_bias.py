"""CorrectBias takes the mean error that a rounded weight makes out of the output."""

import copy
from collections.abc import Callable
from inspect import cleandoc

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import PassError, Recipe
from fxquant.modules.channel_observers import ChannelMean
from fxquant.passes import CorrectBias, InsertObservers, QuantizeWeights
from tests.helpers import Net, apply, graph_text, outputs, relative_error


def corrected(
    model: nn.Module, *batches: Tensor, bits: int = 3
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return the model with `bits`-bit weights before and after the correction."""
    recipe = Recipe.minmax(weight_bits=bits, activation_bits=None, bias_correction=True)
    gm = fxquant.trace(model)
    apply(InsertObservers(recipe), gm)
    for batch in batches:
        outputs(gm, batch)
    reference = copy.deepcopy(gm)
    apply(QuantizeWeights(recipe), gm)
    before = copy.deepcopy(gm)
    assert apply(CorrectBias(reference), gm)
    return before, gm


def mean_error(actual: Tensor, expected: Tensor, axis: int = 1) -> float:
    """Return the greatest error of a channel's mean over the greatest mean."""
    others = [dim for dim in range(actual.dim()) if dim != axis % actual.dim()]
    wanted = expected.mean(others)
    return ((actual.mean(others) - wanted).abs().max() / wanted.abs().max()).item()


EXACT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(4, 6), (32, 4), 1),
    "linear, no bias": (lambda: nn.Linear(4, 6, bias=False), (32, 4), 1),
    "linear, 3-D": (lambda: nn.Linear(4, 6), (8, 5, 4), 2),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), (8, 4, 5, 5), 1),
    "1x1, no bias": (lambda: nn.Conv2d(4, 6, 1, bias=False), (8, 4, 5, 5), 1),
    "1x1, grouped": (lambda: nn.Conv2d(4, 6, 1, groups=2), (8, 4, 5, 5), 1),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 1), (8, 4, 5), 1),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 1), (8, 4, 3, 3, 3), 1),
    "circular 3x3": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (8, 4, 5, 5), 1
    ),
    "transposed 1x1": (lambda: nn.ConvTranspose2d(4, 6, 1), (8, 4, 5, 5), 1),
    "transposed 1x1, grouped": (lambda: nn.ConvTranspose2d(4, 6, 1, groups=2), (8, 4, 5, 5), 1),
    "transposed 2x2, stride 2": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (8, 4, 5, 5), 1),
    "ConvTranspose1d 3, stride 3, grouped": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=3, groups=2), (8, 4, 5), 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("make", "shape", "axis"), EXACT.values(), ids=EXACT)
def test_the_mean_error_vanishes(
    make: Callable[[], nn.Module], shape: tuple[int, ...], axis: int, bits: int
) -> None:
    model, x = nn.Sequential(make()), torch.rand(shape)
    before, after = corrected(model, x, bits=bits)
    expected = outputs(model, x)
    assert mean_error(outputs(before, x), expected, axis) > 1e-3
    assert mean_error(outputs(after, x), expected, axis) < 1e-5
    integers = [gm.get_buffer("0.weight_integers") for gm in (before, after)]
    assert torch.equal(integers[0], integers[1])


@pytest.mark.parametrize(
    ("kind", "kernel", "stride"), [(nn.Conv2d, 3, 1), (nn.ConvTranspose2d, 4, 2)]
)
def test_the_mean_error_shrinks_where_padding_makes_the_mean_inexact(
    kind: type[nn.Module], kernel: int, stride: int
) -> None:
    model = nn.Sequential(kind(4, 6, kernel, stride=stride, padding=1))
    x = torch.rand(8, 4, 16, 16)
    before, after = corrected(model, x)
    expected = outputs(model, x)
    assert mean_error(outputs(after, x), expected) < 0.3 * mean_error(outputs(before, x), expected)


def test_removes_the_means_and_changes_the_bias_alone() -> None:
    fc = nn.Linear(2, 1)
    fc.weight, fc.bias = nn.Parameter(torch.tensor([[1.0, 0.4]])), nn.Parameter(torch.tensor([0.5]))
    model = Net(lambda m, x: m.fc(x), fc=fc)
    before, after = corrected(model, torch.tensor([[1.0, 4.0], [3.0, 2.0]]), bits=2)
    assert graph_text(before) == cleandoc("""
        x = input()
        input_means_fc = self.input_means.fc(x) # ChannelMean
        fc = self.fc(input_means_fc) # QuantizedLinear 2 bits minmax
        return fc
    """)
    assert graph_text(after) == cleandoc("""
        x = input()
        fc = self.fc(x) # QuantizedLinear 2 bits minmax
        return fc
    """)
    # 2 bits: scale 1, Ŵ = [1, 0], E[x] = [2, 3], so b' = 0.5 - (0·2 - 0.4·3)
    torch.testing.assert_close(
        after.get_parameter("fc.bias"), torch.tensor([1.7]), check_stride=False
    )
    assert not after.get_parameter("fc.bias").requires_grad
    assert not any(isinstance(module, ChannelMean) for module in after.modules())
    assert not apply(CorrectBias(before), after)


def test_takes_the_mean_over_all_batches_whatever_their_size() -> None:
    model, batches = nn.Sequential(nn.Linear(4, 6)), [torch.rand(size, 4) for size in (7, 1, 20)]
    _, after = corrected(model, *batches)
    x = torch.cat(batches)
    assert mean_error(outputs(after, x), outputs(model, x)) < 1e-5


def test_corrects_a_shared_layer_once_by_the_mean_over_its_calls() -> None:
    model = Net(lambda m, x: torch.cat([m.fc(x), m.fc(x * 3)]), fc=nn.Linear(4, 6))
    x = torch.rand(16, 4)
    before, after = corrected(model, x)
    expected = outputs(model, x)
    assert mean_error(outputs(before, x), expected) > 1e-3
    assert mean_error(outputs(after, x), expected) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_keeps_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6)).to(dtype), torch.rand(64, 4, dtype=dtype)
    _, after = corrected(model, x)
    assert after.get_parameter("0.bias").dtype is dtype
    assert mean_error(outputs(after, x).double(), outputs(model, x).double()) < tolerance


def test_a_layer_that_saw_nothing_keeps_its_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    _, after = corrected(model)
    assert torch.equal(after.get_parameter("0.bias"), model.get_parameter("0.bias"))
    x = torch.rand(2, 4)
    assert relative_error(outputs(after, x), outputs(model, x)) < 0.5


def test_raises_before_the_weights_are_quantized() -> None:
    recipe = Recipe.minmax(bias_correction=True)
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 6)))
    InsertObservers(recipe)(gm)
    with pytest.raises(PassError, match=r"^CorrectBias: '0' is float: run QuantizeWeights first$"):
        CorrectBias(copy.deepcopy(gm))(gm)


def test_raises_if_the_reference_is_another_model() -> None:
    recipe = Recipe.minmax(bias_correction=True)
    gm = fxquant.trace(nn.Sequential(nn.Linear(4, 6)))
    InsertObservers(recipe)(gm)
    other = fxquant.trace(Net(lambda m, x: m.fc(x), fc=nn.Linear(4, 6)))
    with pytest.raises(PassError, match=r"^CorrectBias: the reference has no module '0'$"):
        CorrectBias(other)(gm)
