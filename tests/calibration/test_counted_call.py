"""The first call of a prepared model counts its multiply-adds, a sample, whoever makes it."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes

import fxquant
from fxquant import Recipe
from fxquant.calibration.counted_call import CountedCall, is_counted
from fxquant.capture.naming import find_regions
from fxquant.graph.journal import read_recipe
from fxquant.graph.records import record
from tests.detectors import detector, images
from tests.helpers import Net

NET = 6 * 6 * 4 * 9 + 4 * 3
DETECTOR = (64 * 3 + 16 * 8 + 2 * 80 * 8) * 8 * 9 + 80 * 8 * 7


def net() -> nn.Module:
    return Net(
        lambda m, x: m.fc(m.conv(x).mean((2, 3))),
        conv=nn.Conv2d(1, 4, 3, padding=1),
        fc=nn.Linear(4, 3),
    ).eval()


def batch(samples: int = 2) -> Tensor:
    return torch.randn(samples, 1, 6, 6)


def total(model: nn.Module) -> float:
    """Return the multiply-adds that the records of a model hold, those in a pickle included."""
    read_recipe(model)
    nodes = [node for gm in find_regions(model).values() for node in gm.graph.nodes]
    return sum(record(node).multiply_adds or 0.0 for node in nodes)


def has_hooks(model: nn.Module) -> bool:
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]
    return any(isinstance(getattr(each, "__self__", None), CountedCall) for each in hooks)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_loop_counts_a_sample_once(samples: int) -> None:
    prepared = fxquant.prepare(net())
    for size in (samples, 5):
        prepared(batch(size))
    assert total(prepared) == NET
    assert not has_hooks(prepared)
    assert modes() == []


def test_a_convolution_keeps_the_shape_of_what_it_read() -> None:
    prepared = fxquant.prepare(net())
    for size in (3, 5):
        prepared(batch(size))
    (gm,) = find_regions(prepared).values()
    shapes = {node.name: record(node).input_shape for node in gm.graph.nodes}
    assert {name: shape for name, shape in shapes.items() if shape} == {"conv": (3, 1, 6, 6)}


def test_an_input_without_a_batch_axis_is_one_sample() -> None:
    prepared = fxquant.prepare(nn.Sequential(nn.Conv2d(1, 4, 3)))
    prepared(torch.randn(1, 6, 6))
    assert total(prepared) == 4 * 4 * 4 * 9


@pytest.mark.parametrize("recipe", ["minmax", "adaround", Recipe.minmax(activation_bits=None)])
def test_calibrate_counts_whatever_the_recipe(recipe: Recipe | str) -> None:
    prepared = fxquant.calibrate(fxquant.prepare(net(), recipe), [batch(), batch()])
    assert total(prepared) == NET
    assert not has_hooks(prepared)


def test_calibrate_counts_a_copy_too() -> None:
    prepared = copy.deepcopy(fxquant.prepare(net()))
    assert total(fxquant.calibrate(prepared, [batch()])) == NET


def test_an_example_counts_before_all_else() -> None:
    prepared = fxquant.prepare(net(), example_inputs=batch(4))
    assert total(prepared) == NET
    assert not has_hooks(prepared)


def test_a_model_in_regions_counts_by_images() -> None:
    prepared = fxquant.prepare(detector())
    prepared(images(3))
    assert total(prepared) == DETECTOR
    assert total(fxquant.prepare(detector(), example_inputs=(images(2),))) == DETECTOR


def test_a_call_of_no_samples_tells_nothing() -> None:
    prepared = fxquant.prepare(net())
    prepared(batch(0))
    assert not is_counted(prepared)
    prepared(batch())
    assert total(prepared) == NET


def test_a_call_that_fails_tells_nothing_and_stops() -> None:
    prepared = fxquant.prepare(net(), verify=False)
    with pytest.raises(RuntimeError, match="broadcast"):
        prepared(torch.randn(1, 2, 6, 6))
    assert modes() == []
    assert not is_counted(prepared)
    prepared(batch())
    assert total(prepared) == NET


def test_ctrl_c_leaves_nothing_behind_in_calibrate_nor_the_next_call() -> None:
    class Interrupted(nn.Module):
        is_interrupted = True

        def forward(self, x: Tensor) -> Tensor:
            if self.is_interrupted:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(nn.Linear(4, 4), Interrupted(), nn.Linear(4, 4)).eval()
    prepared = fxquant.prepare(model, leaf_modules=[Interrupted])
    with pytest.raises(KeyboardInterrupt):
        fxquant.calibrate(prepared, [torch.ones(2, 4)])
    assert modes() == []
    prepared = fxquant.prepare(model, leaf_modules=[Interrupted])
    with pytest.raises(KeyboardInterrupt):
        prepared(torch.ones(2, 4))
    Interrupted.is_interrupted = False
    prepared(torch.ones(2, 4))
    assert modes() == []
    assert total(prepared) == 32


def test_counts_survive_copies_pickles_files_convert_and_lower(tmp_path: Path) -> None:
    prepared = fxquant.calibrate(fxquant.prepare(net()), [batch()])
    quantized = fxquant.convert(pickle.loads(pickle.dumps(copy.deepcopy(prepared))))
    fxquant.save(quantized, tmp_path / "model.fxq")
    for model in (quantized, fxquant.load(tmp_path / "model.fxq")):
        assert total(pickle.loads(pickle.dumps(model))) == NET
        assert total(fxquant.to_qdq(model)) == NET


@pytest.mark.parametrize("model", [net(), detector()])
def test_a_prepared_model_in_a_file_goes_on_counting(model: nn.Module, tmp_path: Path) -> None:
    fxquant.save(fxquant.prepare(model), tmp_path / "model.fxq")
    loaded = fxquant.load(tmp_path / "model.fxq", custom=[type(each) for each in model.modules()])
    loaded(images() if len(find_regions(loaded)) > 1 else batch())
    assert total(loaded) in (NET, DETECTOR)


@pytest.mark.parametrize("model", [net(), detector()])
def test_a_converted_model_counts_nothing(model: nn.Module) -> None:
    recipe = Recipe.minmax(activation_bits=None)
    quantized = fxquant.convert(fxquant.prepare(model, recipe))
    assert not has_hooks(quantized)
    assert not is_counted(quantized)
