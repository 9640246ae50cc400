"""Weights that hooks compute are computed once, and are the hooks' own to the bit."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import fxquant

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def weight_normed(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older form is what is tested
        return weight_norm(module)


def pruned(module: nn.Module) -> nn.Module:
    for method in (prune.RandomUnstructured, prune.L1Unstructured):  # a container of both
        method.apply(module, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return module


HOOKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": weight_normed,
    "spectral_norm": spectral_norm,
    "prune": pruned,
}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("is_root", [True, False], ids=["the model itself", "a submodule"])
def test_a_weight_that_a_hook_computes_is_a_parameter(name: str, is_root: bool) -> None:
    conv = HOOKS[name](nn.Conv2d(3, 4, 3))
    model = conv if is_root else nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())
    model.train()(X)  # a step of the power method, too
    hooks, before = len(conv._forward_pre_hooks), copy.deepcopy(model.state_dict())
    if is_root:
        model = nn.Sequential(model)
    quantized = fxquant.quantize(model, [X], "minmax")
    assert len(conv._forward_pre_hooks) == hooks
    assert all(
        torch.equal(value, before[key])
        for key, value in conv.state_dict(prefix="" if is_root else "0.").items()
    )
    assert type(quantized.get_submodule("0")).__name__ == "QuantizedConv2d"
    assert not any(each._forward_pre_hooks for each in quantized.modules())


@pytest.mark.parametrize("name", HOOKS)
def test_the_weight_is_the_hooks_own_to_the_bit(name: str) -> None:
    model = nn.Sequential(HOOKS[name](nn.Linear(8, 4)), nn.ReLU())
    model(X)
    gm = fxquant.trace(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        assert torch.equal(gm(X), model(X))
