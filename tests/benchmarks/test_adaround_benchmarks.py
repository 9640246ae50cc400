"""The benchmarks of AdaRound run on small things."""

import copy

import pytest
import torch

import fxquant
from benchmarks.judging.comparison import Result
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.rounding import adaround_accuracy, adaround_depth, adaround_options, adaround_speed
from benchmarks.rounding import adaround_steps as steps
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import FoldBatchNorm, QuantizeWeights
from fxquant.rounding.methods.activations import Activation, Clamp, Identity


def test_both_ways_of_collecting_give_every_layer_every_batch() -> None:
    gm = fxquant.trace(CifarResNet(8))
    FoldBatchNorm()(gm)
    reference = copy.deepcopy(gm)
    QuantizeWeights(fxquant.Recipe.minmax(weight_bits=4))(gm)
    batches = [(batch,) for batch in torch.split(torch.randn(4, 3, 8, 8), 2)]
    with torch.no_grad():
        counts = [
            collect(gm, reference, batches)
            for collect in (
                adaround_depth.collect_by_streaming,
                adaround_depth.collect_by_running_anew,
            )
        ]
    layers = sum(isinstance(module, QuantizedLayer) for module in gm.modules())
    assert counts == [2 * layers, 2 * layers]


@pytest.mark.parametrize("activation", [Clamp(), Identity()], ids=str)
def test_a_step_is_timed_with_its_products(activation: Activation) -> None:
    cells = steps.measure(1, 4, 18, activation, 32, False)
    assert len(cells) == 5
    assert float(cells[1]) > 0
    assert cells[0].startswith("moments" if activation == Identity() else "32 rows")


def test_seeds_of_one_method_become_one_row() -> None:
    results = [
        Result("3/32", "AdaRound", top1, 90.0, 15.0, 100, 2.0) for top1 in (91.0, 92.0, 90.0)
    ]
    assert adaround_accuracy.rows(results) == [
        ["3/32", "AdaRound", "91.0 ± 1.0", "90.0", "15.0", "2.0"]
    ]
    names = [name for _, name, _ in adaround_accuracy.recipes((3, None), 2)]
    assert names == ["nearest, min-max", "nearest, same ranges", "AdaRound", "AdaRound"]


def test_every_change_of_options_makes_another_recipe() -> None:
    made = [adaround_options.recipe(3, change) for change in adaround_options.CHANGES]
    assert len({repr(each) for each in made}) == len(made)
    assert made[0] == fxquant.Recipe.adaround(weight_bits=3, activation_bits=None)


def test_our_side_of_the_race_gives_a_rounded_model() -> None:
    model, images = CifarResNet(8).eval(), torch.randn(8, 3, 8, 8)
    quantized, seconds = adaround_speed.run_own(model, images, bits=4, steps=2)
    assert seconds > 0
    assert 0 <= adaround_speed.top1(quantized, images, torch.zeros(8)) <= 100
    learned = [each for each in quantized.modules() if isinstance(each, QuantizedLayer)]
    assert all(layer.rounding is not None for layer in learned)
