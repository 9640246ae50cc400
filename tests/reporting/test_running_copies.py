"""What reports run are copies that observe nothing."""

import torch
from torch import nn

import fxquant
from fxquant import Recipe
from fxquant.modules.own import own_modules
from fxquant.reporting.running_copies import copy_to_run
from tests.detectors import detector, images


def test_a_copy_observes_keeps_compares_and_counts_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.9)).train()
    x = torch.randn(8, 4)
    for given in (model, fxquant.prepare(model, Recipe.adaround())):
        running = copy_to_run(given)
        assert not any(module.watches for _, module in own_modules(running))
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in running.modules())
        assert torch.equal(running(x), model[:2](x))
    assert model.training


def test_so_does_one_in_regions() -> None:
    prepared = fxquant.prepare(detector(), Recipe.adaround())
    before = len(prepared.get_submodule("kept_inputs").batches)  # type: ignore[arg-type]
    running = copy_to_run(prepared)
    running(images())
    assert len(prepared.get_submodule("kept_inputs").batches) == before  # type: ignore[arg-type]
    assert not any(module.watches for _, module in own_modules(running))
