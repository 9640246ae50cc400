"""Activations of which each channel has its own range: where they are, and what they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import Recipe, TensorSpec
from fxquant.modules.channel_observers import ChannelObserver
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.decibels import sqnr
from tests.helpers import Net

RECIPE = Recipe.aciq(activation_per_channel=True, activation_distribution="laplace")
X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


NETS: dict[str, tuple[Net, dict[str, bool]]] = {
    "convolutions, through pooling": (
        Net(lambda m, x: m.b(m.pool(m.a(x).relu())), a=conv(), b=conv(4), pool=nn.MaxPool2d(2)),
        {"x": True, "relu": True},
    ),
    "an addition that a convolution reads": (
        Net(lambda m, x: m.c((m.b(x) + x).relu()), b=conv(3, 3), c=conv()),
        {"x": True, "relu": True},
    ),
    "a linear layer": (
        Net(lambda m, x: m.fc(m.a(x).relu().flatten(1)), a=conv(), fc=nn.Linear(576, 2)),
        {"x": True, "relu": False},
    ),
    "a concatenation": (
        Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(), b=conv(), c=conv(8)),
        {"x": True, "cat": False},
    ),
    "a slice of the channels": (
        Net(lambda m, x: m.c(m.a(x).relu()[:, :2]), a=conv(), c=conv(2)),
        {"x": True, "getitem": True},
    ),
    "one position a channel": (
        Net(
            lambda m, x: m.c(m.pool(m.a(x))),
            a=conv(), c=nn.Conv2d(4, 2, 1), pool=nn.AvgPool2d(12),
        ),
        {"x": True, "a": True, "pool": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("net", "expected"), NETS.values(), ids=NETS)
def test_channels_have_ranges_where_only_convolutions_read_them(
    net: Net, expected: dict[str, bool]
) -> None:
    quantized = fxquant.quantize(net, [X], RECIPE, progress=False)
    found = {
        name.removeprefix("quantizers."): module.axis is not None
        for name, module in quantized.named_modules()
        if isinstance(module, FakeQuantize)
    }
    assert found == expected


def wild() -> tuple[Net, Tensor]:
    """Return a model whose second convolution reads channels of very different size."""
    torch.manual_seed(0)
    first, last = conv(3, 6), conv(6, 4)
    with torch.no_grad():
        sizes = torch.logspace(-2, 2, 6)[:, None, None, None]
        first.weight.mul_(sizes)
        assert first.bias is not None
        first.bias.mul_(sizes.flatten())
        last.weight.div_(sizes.reshape(1, 6, 1, 1))
    return Net(lambda m, x: m.last(m.first(x).relu()), first=first, last=last), X


@pytest.mark.parametrize("kind", ["minmax", "ema", "aciq"])
def test_channels_of_different_size_all_keep_their_precision(kind: Any) -> None:
    model, x = wild()
    with torch.no_grad():
        wanted = model.first(x).relu()  # type: ignore[operator]
    worst = []
    for per_channel in (False, True):
        recipe = Recipe.aciq(
            activation_range=kind, activation_per_channel=per_channel, bias_correction=False
        )
        quantized = fxquant.quantize(model, [x], recipe, progress=False)
        found = quantized.get_submodule("quantizers.relu")(wanted)
        worst.append(min(sqnr(wanted[:, c], found[:, c]) for c in range(6)))
    assert worst[0] < 5
    assert worst[1] > 35


def test_the_observer_keeps_each_channels_extremes_and_moments() -> None:
    observer = ChannelObserver(TensorSpec(range="ema", momentum=0.5), None, axis=-3)
    low = torch.tensor([[[[0.0, 2.0]], [[-4.0, 4.0]]]])  # (1, 2, 1, 2)
    observer(low)
    observer(2 * low)
    statistics = observer.channel_statistics()
    assert statistics is not None
    assert statistics.high.tolist() == [4, 8]
    assert statistics.low.tolist() == [0, -8]
    assert statistics.ema_high.tolist() == [3, 6]
    assert statistics.mean.tolist() == [1.5, 0]
    assert statistics.deviation.tolist() == [1.5, 6]
    assert statistics.sigma.tolist() == pytest.approx([2.5**0.5, 40**0.5])


def test_a_batch_with_nan_is_left_out() -> None:
    observer = ChannelObserver(TensorSpec(), None, axis=-3)
    observer(X)
    before = {name: value.clone() for name, value in observer.state_dict().items()}
    bad = X.clone()
    bad[0, 0, 0, 0] = torch.nan
    observer(bad)
    after = observer.state_dict()
    for name in observer.sized_by_data:
        assert torch.equal(after[name], before[name])
    assert observer.nonfinite == 1


def test_what_was_seen_survives_a_state_dict_into_a_fresh_model() -> None:
    model, x = wild()
    prepared = fxquant.prepare(model, RECIPE)
    fxquant.calibrate(prepared, [x], progress=False)
    fresh = fxquant.prepare(model, RECIPE)
    fresh.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        assert torch.equal(fxquant.convert(fresh)(x), fxquant.convert(prepared)(x))


def test_batches_of_ranks_are_taken_in_as_if_one_had_seen_them() -> None:
    spec = TensorSpec(range="aciq")
    alone, one, other = (ChannelObserver(spec, None, -3) for _ in range(3))
    for index, batch in enumerate(torch.split(X, 4)):
        alone(batch)
        (one if index < 3 else other)(batch)
    one.take_in([one.state(), other.state()])
    for name in one.sized_by_data:
        if "ema" not in name:
            torch.testing.assert_close(getattr(one, name), getattr(alone, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_quantizer_keeps_the_dtype_and_hands_gradients_on(dtype: torch.dtype) -> None:
    scale, zero = torch.tensor([0.5, 1.0]), torch.zeros(2, dtype=torch.int32)
    affine = Affine(scale, zero, Grid.of(4, signed=False))
    quantizer = FakeQuantize(affine, TensorSpec(bits=4), 20.0, axis=-3)
    x = torch.tensor([[[[0.7, 9.0]], [[0.7, 20.0]]]], dtype=dtype)
    assert quantizer(x).flatten().tolist() == [0.5, 7.5, 1, 15]
    assert quantizer(x).dtype == dtype
    with_gradient = x.float().requires_grad_()
    quantizer(with_gradient).sum().backward()
    assert with_gradient.grad is not None
    assert with_gradient.grad.flatten().tolist() == [1, 0, 1, 0]
    assert "over 2 channels" in repr(quantizer)
