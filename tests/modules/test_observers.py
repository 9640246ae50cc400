"""What the observers keep: all batches alike, in constant memory, at float32."""

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxquant.modules.channel_observers import ChannelMean, ChannelObserver
from fxquant.modules.observers import LogitObserver, Observer, statistics_of
from fxquant.modules.own import OwnModule
from fxquant.numerics.activation_ranges import activation_range
from fxquant.recipe.spec import TensorSpec

METHODS = ("minmax", "percentile", "mse", "aciq")  # "ema" is about the batches


def observed(*batches: Any, clamp: tuple[float, float] | None = None, **options: Any) -> Observer:
    observer = Observer(TensorSpec(**options), clamp)
    for batch in batches:
        assert observer(batch) is batch
    return observer


def assert_same_buffers(actual: nn.Module, expected: nn.Module) -> None:
    buffers = dict(expected.named_buffers())
    for name, buffer in actual.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name]), name


def test_streaming_equals_one_batch() -> None:
    x = torch.randn(16, 3, 8, 8)
    at_once, streamed = observed(x), observed(*torch.split(x, [1, 5, 10]))
    assert torch.equal(streamed.counts, at_once.counts)
    assert (streamed.low, streamed.high) == (at_once.low, at_once.high) == (x.min(), x.max())
    assert streamed.num_batches == 3
    assert at_once.num_batches == 1
    for method in METHODS:
        options: dict[str, Any] = {"range": method}
        spec = TensorSpec(bits=4, **options)
        ranges = {activation_range(statistics_of([each]), spec) for each in (at_once, streamed)}
        assert len(ranges) == 1


def test_statistics_are_what_was_seen() -> None:
    x = torch.randn(50, 40)
    statistics = statistics_of([observed(x, clamp=(0.0, 6.0))])
    assert (statistics.low, statistics.high) == (x.min().item(), x.max().item())
    assert statistics.clamp == (0.0, 6.0)
    assert statistics.histogram.mean().item() == pytest.approx(x.mean().item(), abs=2e-3)
    assert statistics.output.mean().item() == pytest.approx(x.relu().mean().item(), abs=2e-3)


def test_ema_by_hand() -> None:
    batches = [torch.tensor([low, high]) for low, high in ((-1.0, 2.0), (-3.0, 4.0), (-2.0, 10.0))]
    observer = observed(batches[0], momentum=0.9)
    assert (observer.ema_low.item(), observer.ema_high.item()) == (-1, 2)  # the first counts whole
    observer(batches[1])  # 0.9·(-1) + 0.1·(-3), 0.9·2 + 0.1·4
    assert observer.ema_low.item() == pytest.approx(-1.2)
    assert observer.ema_high.item() == pytest.approx(2.2)
    observer(batches[2])  # 0.9·(-1.2) + 0.1·(-2), 0.9·2.2 + 0.1·10
    assert observer.ema_low.item() == pytest.approx(-1.28)
    assert observer.ema_high.item() == pytest.approx(2.98)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2], ids=["first", "between", "last"])
def test_a_batch_with_nan_or_infinity_is_counted_and_ignored(value: float, position: int) -> None:
    batches = [torch.randn(4, 5), torch.randn(4, 5)]
    clean = observed(*batches)
    bad = torch.randn(4, 5) * 100
    bad[2, 3] = value
    batches.insert(position, bad)
    observer = observed(*batches)
    assert observer.nonfinite == 1
    observer.nonfinite.zero_()
    assert_same_buffers(observer, clean)


@pytest.mark.parametrize(
    "x",
    [torch.arange(5), torch.tensor([True]), torch.empty(0, 3), torch.ones(2) * 1j, 3.5, None],
    ids=["int", "bool", "empty", "complex", "number", "none"],
)
def test_anything_but_floating_point_values_passes_unseen(x: Any) -> None:
    assert_same_buffers(observed(x), Observer(TensorSpec()))


def test_a_tensor_that_requires_a_gradient_is_watched_without_one() -> None:
    x = torch.randn(3, requires_grad=True)
    observer = observed(x)
    assert observer.num_batches == 1
    assert not any(buffer.requires_grad for buffer in observer.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_watched_as_float32(dtype: torch.dtype) -> None:
    x = torch.randn(8, 30).to(dtype)
    assert_same_buffers(observed(x), observed(x.float()))


def test_many_small_batches_do_not_lose_counts() -> None:
    observer = observed(*[torch.ones(1, 7)] * 300)  # bfloat16 would stop at 256
    assert observer.counts.sum() == 2100
    assert observer.num_batches == 300


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4, 5), (1, 3, 300, 300)])
def test_state_does_not_grow(shape: tuple[int, ...]) -> None:
    observer = observed(torch.randn(shape), torch.randn(shape))
    sizes = {name: buffer.shape for name, buffer in observer.named_buffers()}
    assert sizes == {name: buffer.shape for name, buffer in Observer(TensorSpec()).named_buffers()}
    assert observer.ranks == {len(shape)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_the_models_dtype_leaves_the_statistics_as_they_are(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6) * 1e-9  # underflows in float16
    parent = nn.Sequential(nn.Linear(6, 6), observed(x), mean := ChannelMean(6, -1))
    mean(x)
    before = copy.deepcopy(parent)
    parent.to(dtype)
    assert parent[0].weight.dtype == dtype
    assert_same_buffers(parent[1], before[1])
    assert_same_buffers(parent[2], before[2])


def test_a_state_dict_restores_the_statistics() -> None:
    observer = observed(torch.randn(4, 6), torch.randn(4, 6))
    restored = Observer(TensorSpec())
    restored.load_state_dict(observer.state_dict())
    assert_same_buffers(restored, observer)
    batch = torch.randn(4, 6)
    restored(batch)
    observer(batch)
    assert_same_buffers(restored, observer)  # it goes on where the other was


def test_pickling_keeps_everything() -> None:
    observer = observed(torch.randn(4, 6), clamp=(0.0, 6.0), bits=4)
    loaded = pickle.loads(pickle.dumps(observer))
    assert_same_buffers(loaded, observer)
    assert (loaded.spec, loaded.clamp, loaded.ranks) == (observer.spec, (0.0, 6.0), {2})


def test_repr_tells_the_spec_and_the_relu() -> None:
    assert repr(Observer(TensorSpec())) == "Observer(8 bits minmax)"
    assert repr(Observer(TensorSpec(bits=4), (0.0, 6.0))) == (
        "Observer(4 bits minmax, before clamp(0.0, 6.0))"
    )


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((6, 5), -1),
        ((5,), -1),
        ((6, 7, 5), -1),
        ((6, 5, 8), -2),
        ((6, 5, 8, 9), -3),
        ((5, 8, 9), -3),
        ((6, 5, 2, 3, 4), -4),
    ],
)
def test_channel_mean_is_the_mean_over_all_other_axes(shape: tuple[int, ...], axis: int) -> None:
    watch = ChannelMean(5, axis)
    batches = [torch.randn(shape) + 3 for _ in range(4)]
    for batch in batches:
        assert watch(batch) is batch
    others = [each for each in range(len(shape)) if each != len(shape) + axis]
    together = torch.stack(batches)
    expected = together.mean(dim=[0, *(each + 1 for each in others)])
    torch.testing.assert_close(watch.mean, expected)
    assert watch.num_values == together.numel() // 5


def test_channel_mean_weighs_batches_by_their_size() -> None:
    x = torch.randn(100, 5) * torch.linspace(0, 9, 100)[:, None]
    watch = ChannelMean(5, -1)
    for batch in torch.split(x, [1, 90, 9]):
        watch(batch)
    torch.testing.assert_close(watch.mean, x.mean(0))


def test_channel_mean_ignores_an_empty_batch() -> None:
    watch = ChannelMean(5, -1)
    watch(torch.empty(0, 5))
    assert watch.num_values == 0
    assert not watch.mean.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_channel_mean_ignores_a_batch_with_nan_or_infinity(value: float, position: int) -> None:
    good, bad = torch.randn(6, 5), torch.randn(6, 5)
    bad[1, 2] = value
    watch = ChannelMean(5, -1)
    for batch in (bad, good) if position == 0 else (good, bad):
        watch(batch)
    torch.testing.assert_close(watch.mean, good.mean(0))
    assert watch.num_values == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_mean_sums_half_precision_in_float32(dtype: torch.dtype) -> None:
    x = (torch.rand(3000, 2) + 100).to(dtype)  # 300,000 is infinite in float16
    watch = ChannelMean(2, -1)
    for batch in torch.split(x, [1000] * 3):
        watch(batch)
    assert watch.mean.dtype == torch.float32
    torch.testing.assert_close(watch.mean, x.double().mean(0).float())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Observer(TensorSpec(range="ema")),
        lambda: LogitObserver(TensorSpec()),
        lambda: ChannelObserver(TensorSpec(range="ema"), None, axis=-1),
        lambda: ChannelMean(3, axis=-1),
    ],
    ids=["Observer", "LogitObserver", "ChannelObserver", "ChannelMean"],
)
def test_a_rank_takes_in_what_all_ranks_saw(make: Callable[[], OwnModule]) -> None:
    batches = [torch.randn(4, 3) for _ in range(4)] + [torch.full((4, 3), math.nan)]
    alone, *ranks, idle = (make() for _ in range(4))
    for number, batch in enumerate(batches):
        alone(batch)
        ranks[number > 0](batch)
    before = [each.state() for each in (*ranks, idle)]
    ranks[0].take_in(pickle.loads(pickle.dumps(before)))
    found, expected = ranks[0].state(), alone.state()
    assert found.pop("ranks", None) == expected.pop("ranks", None)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


def test_ranks_that_saw_other_numbers_of_axes_leave_the_rank_unknown() -> None:
    one, other = Observer(TensorSpec()), Observer(TensorSpec())
    one(torch.ones(2, 3))
    other(torch.ones(2, 3, 4))
    assert (one.seen_rank, other.seen_rank) == (2, 3)
    one.take_in([one.state(), other.state()])
    assert one.seen_rank is None


@pytest.mark.parametrize("parts", [(1, 1, 1, 1, 1, 1), (2, 4), (0, 5, 1), (3, 0, 3), (6,)])
@pytest.mark.parametrize("axis", [None, -1])
def test_moving_averages_do_not_depend_on_the_number_of_ranks(
    parts: tuple[int, ...], axis: int | None
) -> None:
    spec = TensorSpec(range="ema", momentum=0.7, per_channel=axis is not None)

    def make() -> Observer:
        return Observer(spec) if axis is None else ChannelObserver(spec, None, axis)

    batches = [torch.randn(4, 5, 3) * (1 + number) for number in range(6)]
    alone, ranks, left = make(), [make() for _ in parts], iter(batches)
    for batch in batches:
        alone(batch)
    for rank, number in zip(ranks, parts, strict=True):
        for batch in itertools.islice(left, number):
            rank(batch)
    states = [each.state() for each in ranks]
    for rank in ranks:
        rank.take_in(states)
        for found, expected in zip(rank.range_by(spec), alone.range_by(spec), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
