"""What regions are called with: every call of one region, from one run of the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant.calibration.region_calls import (
    StoredCalls,
    are_aligned,
    record_calls,
    regions_in_order,
)
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import capture
from fxquant.capture.region import Region
from fxquant.streaming.running import run
from fxquant.streaming.value_store import ValueStore


class Part(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, outputs)

    def forward(self, x: Tensor, scale: float = 2.0, shift: float = 0.0) -> Any:
        return self.fc(x) * scale + shift


class Levels(nn.Module):
    """Calls `head` on parts of what `stem` makes of its input, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0
        self.unused = Part(4)
        self.head, self.stem = Part(3), Part(4)

    def forward(self, x: Tensor, sizes: Any) -> Any:
        self.num_calls += 1
        results = []
        for number, part in enumerate(torch.split(self.stem(input_of(x)), sizes)):
            results.append(self.head(part, shift=float(number)))
            part.zero_()
        return results


def input_of(x: Tensor) -> Tensor:
    if x.sum() > 1e6:
        raise ValueError("too large")
    return x


Batches = list[tuple[Any, ...]]


def batches() -> Batches:
    generator = torch.Generator().manual_seed(0)
    sizes = ([2, 3], [1, 4], [4, 0, 1])
    return [(torch.randn(5, 4, generator=generator), each) for each in sizes]


def captured() -> nn.Module:
    torch.manual_seed(0)
    return capture(Levels()).model


def region_of(model: nn.Module, name: str) -> Region:
    region = find_regions(model)[name]
    assert isinstance(region, Region)
    return region


def expected_calls(model: nn.Module, data: Batches) -> list[list[tuple[Any, ...]]]:
    """Return what `head` is called with, batch by batch."""
    with torch.no_grad():
        parts = [torch.split(region_of(model, "stem")(x), sizes) for x, sizes in data]
    return [[(part, 2.0, float(number)) for number, part in enumerate(each)] for each in parts]


def assert_equal(actual: Any, expected: Any) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert [type(value) for value in one] == [type(value) for value in other]
        torch.testing.assert_close(tuple(one), tuple(other), rtol=0, atol=0)


def test_the_model_runs_once_for_all_calls_of_a_region() -> None:
    model = captured()
    with ValueStore() as store:
        assert len(record_calls(model, region_of(model, "head"), batches(), store)) == 6
    assert model.num_calls == 3


def test_all_first_calls_come_first_and_empty_ones_are_left_out() -> None:
    model, data = captured(), batches()
    first, second, third = expected_calls(model, data)
    with ValueStore() as store:
        calls = record_calls(model, region_of(model, "head"), data, store)
        assert_equal(calls, [first[0], second[0], third[0], first[1], second[1], third[2]])


def test_arguments_are_positional_with_defaults_filled_in() -> None:
    model, data = captured(), batches()
    with ValueStore() as store:
        assert_equal(
            record_calls(model, region_of(model, "stem"), data, store),
            [(x, 2.0, 0.0) for x, _ in data],
        )
        calls = record_calls(model, region_of(model, "head"), data, store)
        scale_shift = [call[1:] for call in calls]
    assert scale_shift == [(2.0, 0.0)] * 3 + [(2.0, 1.0)] * 2 + [(2.0, 2.0)]


def test_calls_are_copies_without_gradients() -> None:
    model, data = captured(), batches()
    expected = expected_calls(model, data)[0][0]
    with ValueStore() as store:
        calls = record_calls(model, region_of(model, "head"), data, store)
        assert_equal(calls[:1], [expected])  # the model writes zeros over it
        stem = record_calls(model, region_of(model, "stem"), data, store)
        data[0][0].zero_()
        assert stem[0][0].abs().sum() > 0
        assert not calls[0][0].requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_watches_the_region_afterwards(fails: bool) -> None:
    model, data = captured(), batches()
    region = region_of(model, "head")
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with ValueStore() as store:
        if fails:
            data[1] = (data[1][0] + 1e6, [5])
            with pytest.raises(ValueError, match="too large"):
                record_calls(model, region, data, store)
            with pytest.raises(ValueError, match="too large"):
                regions_in_order(model, data[1:])
        else:
            record_calls(model, region, data, store)
            regions_in_order(model, data)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


def test_a_region_that_is_not_called_has_no_calls() -> None:
    model = captured()
    with ValueStore() as store:
        calls = record_calls(model, region_of(model, "unused"), batches(), store)
        assert len(calls) == 0
        assert list(calls) == []


def test_a_tiny_store_spills_and_gives_back_the_same() -> None:
    model, data = captured(), batches()
    region = region_of(model, "head")
    with ValueStore() as memory, ValueStore(max_bytes=40) as disk:
        in_memory = record_calls(model, region, data, memory)
        spilled = record_calls(model, region, data, disk)
        assert memory.bytes_spilled == 0
        assert disk.bytes_spilled > 0
        assert disk.bytes_in_memory <= 40
        assert_equal(spilled, in_memory)


@pytest.mark.parametrize("max_bytes", [None, 20])
def test_stored_calls_are_a_sequence(max_bytes: int | None) -> None:
    values = [(torch.full((n, 2), float(n)), [torch.ones(n)], None, n) for n in range(4)]
    with ValueStore(max_bytes) as store:
        calls = StoredCalls(store)
        for number in (2, 0, 3, 1):
            calls.append(values[number], number)
        assert torch.equal(calls[0][0], values[2][0])
        calls.sort()
        assert len(calls) == 4
        assert_equal(calls, values)
        assert_equal(calls[1:3], values[1:3])
        assert_equal([calls[-1]], values[-1:])
        with pytest.raises(IndexError):
            _ = calls[4]


def test_calls_that_share_a_store_are_dropped_on_their_own() -> None:
    with ValueStore() as store:
        one, other = StoredCalls(store), StoredCalls(store)
        one.append((torch.zeros(2),), 0)
        other.append((torch.ones(2),), 0)
        one.drop()
        assert len(one) == 0
        assert torch.equal(other[0][0], torch.ones(2))
        assert store.bytes_in_memory == 8


def test_regions_come_in_the_order_of_their_first_calls() -> None:
    model = captured()
    assert list(find_regions(model)) == ["unused", "head", "stem"]
    assert list(regions_in_order(model, batches())) == ["stem", "head", "unused"]
    assert regions_in_order(model, batches()) == find_regions(model)


def test_the_order_costs_one_run_of_one_batch() -> None:
    model = captured()
    regions_in_order(model, batches())
    assert model.num_calls == 1


def test_a_model_that_is_one_graph_is_not_run() -> None:
    gm = fx.symbolic_trace(Part(2))
    assert regions_in_order(gm, [("no tensor",)]) == {"": gm}


def test_runs_without_gradients_and_yields_results() -> None:
    model, data = captured(), batches()
    results = list(run(model, data))
    assert [len(each) for each in results] == [2, 2, 3]
    assert not results[0][0].requires_grad


class Shifts(nn.Module):
    """Writes to the images it is given, as a detector that normalizes them may."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part(2)

    def forward(self, images: Any) -> Any:
        return [self.part(image.sub_(1)) for image in images]


def test_a_model_that_writes_to_its_inputs_runs_on_the_same_every_time() -> None:
    model = capture(Shifts()).model
    images = [torch.ones(2, 4), torch.ones(3, 4)]
    with ValueStore() as store:
        for _ in range(2):
            calls = record_calls(model, region_of(model, "part"), [(images,)], store)
            assert all(torch.equal(call[0], torch.zeros_like(call[0])) for call in calls)
    assert all(torch.equal(image, torch.ones_like(image)) for image in images)


SAMPLES = torch.randn(400, 3, 2, generator=torch.Generator().manual_seed(1))
NOISE = 0.1 * torch.randn(400, 3, 2, generator=torch.Generator().manual_seed(2))


def few_wrong(number: int) -> Tensor:
    """Return the samples with another sample's values in `number` of them."""
    samples = SAMPLES.clone()
    samples[:number] = SAMPLES[-number:]
    return samples


ALIGNED: dict[str, Any] = {
    "same": [(SAMPLES,)],
    "small noise": [(SAMPLES + NOISE,)],
    "one in 400 is another": [(few_wrong(1),)],
}
NOT_ALIGNED: dict[str, Any] = {
    "great noise": [(SAMPLES + 20 * NOISE,)],
    "eight in 400 are others": [(few_wrong(8),)],
    "shuffled": [(SAMPLES[torch.randperm(400, generator=torch.Generator().manual_seed(0))],)],
    "fewer samples": [(SAMPLES[1:],)],
    "another rank": [(SAMPLES[None],)],
    "more calls": [(SAMPLES,), (SAMPLES,)],
    "no calls": [],
    "more tensors": [(SAMPLES, SAMPLES)],
    "in a list with another": [([SAMPLES, SAMPLES],)],
    "none": [(None,)],
}


@pytest.mark.parametrize("other", ALIGNED.values(), ids=ALIGNED)
def test_calls_with_the_same_samples_are_aligned(other: Any) -> None:
    assert are_aligned(other, [(SAMPLES,)])


@pytest.mark.parametrize("other", NOT_ALIGNED.values(), ids=NOT_ALIGNED)
def test_calls_with_other_samples_are_not_aligned(other: Any) -> None:
    assert not are_aligned(other, [(SAMPLES,)])
    assert not are_aligned([(SAMPLES,)], other)


def test_what_is_no_float_is_compared_by_shape_alone() -> None:
    one, other = [(SAMPLES, torch.arange(3), "a", 1.0)], [(SAMPLES, torch.ones(3).int(), "b", 2.0)]
    assert are_aligned(one, other)
    other[0] = (SAMPLES, torch.ones(4).int(), "b", 2.0)
    assert not are_aligned(one, other)


@pytest.mark.parametrize("value", [torch.zeros(3, 4), torch.zeros(3), torch.tensor(0.0)], ids=str)
def test_zeros_are_aligned_with_zeros(value: Tensor) -> None:
    assert are_aligned([(value,)], [(value,)])


def test_tensors_in_lists_and_dicts_are_compared() -> None:
    one = [([SAMPLES, {"x": SAMPLES}],)]
    assert are_aligned(one, [([SAMPLES, {"x": SAMPLES + NOISE}],)])
    assert not are_aligned(one, [([SAMPLES, {"x": SAMPLES.flip(0)}],)])


def test_stored_calls_are_compared_where_they_lie() -> None:
    model, data = captured(), batches()
    with ValueStore(max_bytes=10) as store:
        one = record_calls(model, region_of(model, "head"), data, store)
        again = record_calls(model, region_of(model, "head"), data, store)
        other = record_calls(model, region_of(model, "head"), data[::-1], store)
        assert are_aligned(one, again)
        assert not are_aligned(one, other)
