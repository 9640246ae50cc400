"""What the parameters take is what `save` writes of them."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.reporting.sizes import Sizes, short_bytes, sizes_of
from tests.helpers import Net, needs_int8


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(),
        nn.Linear(64 * 16, 10),
    ).eval()  # fmt: skip


def quantized(bits: int) -> nn.Module:
    return fxquant.quantize(network(), [torch.randn(2, 3, 8, 8)], Recipe.aciq(weight_bits=bits))


WEIGHTS, BIASES = 64 * 27 + 64 * 576 + 10 * 1024, 64 + 64 + 10


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_float_weights_take_four_bytes_and_integers_their_bits(bits: int) -> None:
    sizes = sizes_of(quantized(bits))
    assert sizes.before == 4 * (WEIGHTS + BIASES)
    scales = 8 * (64 + 64 + 10)  # and as many zero-points
    assert sizes.after == pytest.approx(WEIGHTS * bits / 8 + 4 * BIASES + scales, abs=100)


def test_it_is_what_a_file_holds(tmp_path: Path) -> None:
    model = quantized(4)
    fxquant.save(model, tmp_path / "model.fxq")
    tensors = (tmp_path / "model.fxq").stat().st_size
    assert sizes_of(model).after == pytest.approx(tensors, rel=0.25)  # and the graph


@needs_int8
def test_lowering_changes_little() -> None:
    model = quantized(8)
    before, after = sizes_of(model), sizes_of(fxquant.lower(model))
    assert after.before == before.before
    assert after.after == pytest.approx(before.after, rel=0.05)


def test_a_layer_that_is_called_twice_counts_once() -> None:
    shared = Net(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(8, 8))
    sizes = sizes_of(fxquant.quantize(shared, [torch.randn(2, 8)]))
    assert sizes.before == 4 * (64 + 8)


def test_observers_of_a_prepared_model_do_not_count() -> None:
    prepared = fxquant.calibrate(fxquant.prepare(network()), [torch.randn(2, 3, 8, 8)])
    sizes = sizes_of(prepared)
    assert sizes.before == sizes.after == 4 * (WEIGHTS + BIASES)
    assert str(sizes) == f"{short_bytes(sizes.before)} of parameters"


def test_sizes_are_said_in_short() -> None:
    said = "46.8 MB of parameters in float, 11.7 MB packed (25 %)"
    assert str(Sizes(46_800_000, 11_700_000)) == said
