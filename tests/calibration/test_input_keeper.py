"""A prepared model keeps copies of what it is called with, as many samples as asked for."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import CalibrationError, Recipe
from fxquant.calibration.input_keeper import InputKeeper, find_keeper, keep_inputs
from tests.helpers import Several, assert_equal, whole


def keeping(model: nn.Module | None = None, max_samples: int = 100) -> fx.GraphModule:
    gm = fx.symbolic_trace(model or nn.Sequential(nn.Linear(4, 2)))
    keep_inputs(gm, max_samples)
    gm.graph.lint()
    return gm


def kept(gm: fx.GraphModule) -> InputKeeper:
    keeper = find_keeper(gm)
    assert keeper is not None
    return keeper


def test_keeps_copies_of_what_the_graph_is_called_with() -> None:
    gm, x = keeping(), torch.randn(3, 4, requires_grad=True)
    before = x.detach().clone()
    gm(x)
    x.detach().zero_()
    assert_equal(kept(gm).batches, [(before,)])
    assert not kept(gm).batches[0][0].requires_grad
    assert kept(gm).num_samples == 3


def test_keeps_copies_of_tensors_in_containers() -> None:
    keeper, tensor = InputKeeper(10), torch.ones(3, 4)
    keeper(tensor, (tensor,), [tensor], {"x": tensor})
    tensor.zero_()
    ((one, two, three, four),) = keeper.batches
    for held in (one, *two, *three, *four.values()):
        assert torch.equal(held, torch.ones(3, 4))


def test_what_the_model_changes_in_place_is_kept_as_it_came() -> None:
    gm, x = keeping(nn.Sequential(nn.ReLU(inplace=True))), -torch.ones(2, 4)
    gm(x)
    assert_equal(kept(gm).batches, [(-torch.ones(2, 4),)])


def test_keeps_at_most_max_samples_of_the_first_batches() -> None:
    gm, x = keeping(max_samples=5), torch.randn(12, 4)
    for batch in torch.split(x, [2, 1, 4, 5]):
        gm(batch)
    assert_equal(kept(gm).batches, [(x[:2],), (x[2:3],), (x[3:5],)])
    assert kept(gm).num_samples == 5
    assert repr(kept(gm)) == "InputKeeper(5 of at most 5 samples)"


def test_several_inputs_stay_aligned() -> None:
    gm = keeping(Several(), max_samples=4)
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    gm(x[:3], y[:3], 3.0)
    gm(x[3:], y[3:], text="more")
    expected = [(x[:3], y[:3], 3.0, "none"), (x[3:4], y[3:4], 2.0, "more")]
    assert_equal(kept(gm).batches, expected)


def test_keyword_calls_are_kept_in_the_order_of_the_inputs() -> None:
    gm, x, y = keeping(Several()), torch.randn(3, 4), torch.randn(3, 4)
    gm(y=y, x=x, text="text")
    assert_equal(kept(gm).batches, [(x, y, 2.0, "text")])


def test_a_batch_counts_as_the_length_of_its_first_tensor() -> None:
    keeper = InputKeeper(10)
    keeper("text", torch.randn(3, 4), torch.randn(7))
    keeper(torch.tensor(1.0))
    keeper("no tensor")
    assert keeper.num_samples == 5
    assert [len(batch) for batch in keeper.batches] == [3, 1, 1]


def test_an_empty_batch_is_not_kept() -> None:
    keeper = InputKeeper(10)
    keeper(torch.empty(0, 4))
    assert (keeper.num_samples, keeper.batches) == (0, [])


def test_forgets_from_a_batch_on() -> None:
    keeper = InputKeeper(6)
    for number in range(4):
        keeper(torch.full((2, 1), float(number)))
    keeper.forget_from(1)
    assert keeper.num_samples == 2
    keeper(torch.full((5, 1), 9.0))
    assert_equal(keeper.batches, [(torch.zeros(2, 1),), (torch.full((4, 1), 9.0),)])


def test_a_batch_with_nan_is_forgotten_by_calibrate() -> None:
    prepared = fxquant.prepare(nn.Sequential(nn.Linear(4, 2)), Recipe.adaround(steps=1))
    good, bad = torch.randn(3, 4), torch.full((3, 4), torch.nan)
    with pytest.raises(CalibrationError, match=r"^batch 1: NaN or infinity"):
        fxquant.calibrate(prepared, [good, bad], progress=False)
    assert_equal(kept(whole(prepared)).batches, [(good,)])


def test_a_deep_copy_shares_the_tensors_and_counts_on_its_own() -> None:
    gm = keeping(max_samples=10)
    gm(torch.randn(3, 4))
    copied = copy.deepcopy(gm)
    assert kept(copied).batches[0][0] is kept(gm).batches[0][0]
    copied(torch.randn(4, 4))
    assert (kept(gm).num_samples, kept(copied).num_samples) == (3, 7)
    assert (len(kept(gm).batches), len(kept(copied).batches)) == (1, 2)


def test_survives_pickling_and_dead_code_elimination() -> None:
    prepared = fxquant.prepare(nn.Sequential(nn.Linear(4, 2)), Recipe.adaround(samples=7, steps=1))
    first, second = torch.randn(3, 4), torch.randn(5, 4)
    prepared(first)
    loaded = pickle.loads(pickle.dumps(prepared))
    loaded.graph.eliminate_dead_code()
    loaded.recompile()
    loaded(second)
    assert kept(loaded).max_samples == 7
    assert_equal(kept(loaded).batches, [(first,), (second[:4],)])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(3, 4, 3), (3, 8, 8)), (nn.Linear(4, 2), (4,))],
    ids=["image", "vector"],
)
def test_an_input_without_a_batch_axis_is_one_sample(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    gm, batches = keeping(nn.Sequential(layer), max_samples=3), torch.randn(5, *shape)
    for batch in batches:
        gm(batch)
    assert_equal(kept(gm).batches, [(each,) for each in batches[:3]])


def test_an_input_whose_samples_are_numbers_has_a_batch_axis() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Embedding(10, 2), nn.Linear(4, 2)

        def forward(self, ids: Tensor, x: Tensor) -> Any:
            return self.embedding(ids) + self.fc(x)

    gm = keeping(Embedded(), max_samples=5)
    for _ in range(3):
        gm(torch.arange(3), torch.randn(3, 4))
    assert kept(gm).num_samples == 5
    assert [len(ids) for ids, _ in kept(gm).batches] == [3, 2]


class ByKeyword(nn.Module):
    """Cannot be traced whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor, *, y: Any = 1.0) -> Tensor:
        return self.fc(x + y) if x.sum() > -1e9 else x


def test_what_is_given_by_keyword_only_is_not_kept() -> None:
    recipe, x = Recipe.adaround(steps=1, samples=4), torch.randn(4, 4)
    assert fxquant.report(fxquant.quantize(ByKeyword(), [x], recipe)).num_quantized == 1
    assert fxquant.report(fxquant.quantize(ByKeyword(), [{"x": x, "y": x}])).num_quantized == 1
    with pytest.raises(CalibrationError, match="forward: y can be given by keyword only, and inp"):
        fxquant.quantize(ByKeyword(), [{"x": x, "y": x}], recipe)
