"""Folding a batch norm computes what the two modules compute, for every layer and dtype."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fxquant.modules.batchnorm import (
    BatchNorm,
    FunctionalBatchNorm,
    fold_after,
    fold_before,
    is_batchnorm_module,
    scale_and_shift,
    why_not_affine,
)
from fxquant.modules.layers import Layer, is_transposed, output_rows
from tests.helpers import randomize_batchnorms
from tests.layer_kinds import KINDS, make_input, make_layer

each_kind = pytest.mark.parametrize(("kind", "options"), KINDS)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
BATCHNORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def make_batchnorm(channels: int, rank: int, **options: Any) -> BatchNorm:
    """Return an eval-mode batch norm with random statistics for tensors of that rank."""
    batchnorm: BatchNorm = BATCHNORMS[rank](channels, **options).eval()
    randomize_batchnorms(batchnorm)
    return batchnorm


def folded(layer: Layer, fold: Any, batchnorm: BatchNorm) -> Layer:
    layer = copy.deepcopy(layer)
    fold(layer, *scale_and_shift(batchnorm))
    return layer


def check_fold_after(layer: Layer, batchnorm: BatchNorm) -> None:
    x = make_input(layer)
    expected = batchnorm(layer(x))
    torch.testing.assert_close(folded(layer, fold_after, batchnorm)(x), expected)


@each_kind
@with_and_without_bias
def test_fold_after_equals_layer_then_batchnorm(
    kind: type[nn.Module], options: dict[str, Any], bias: bool
) -> None:
    layer = make_layer(kind, options, bias=bias)
    check_fold_after(layer, make_batchnorm(8, layer.weight.dim()))


@each_kind
@with_and_without_bias
def test_fold_before_equals_batchnorm_then_layer(
    kind: type[nn.Module], options: dict[str, Any], bias: bool
) -> None:
    # A transposed convolution leaves out taps at its border: exact there for a kernel of 1.
    one = {"kernel_size": 1} if "Transpose" in kind.__name__ else {}
    layer = make_layer(kind, options, bias=bias, **one)
    batchnorm = make_batchnorm(4, layer.weight.dim())
    x = make_input(layer)
    torch.testing.assert_close(folded(layer, fold_before, batchnorm)(x), layer(batchnorm(x)))


@each_kind
def test_fold_before_without_a_shift_allows_padding_and_every_kernel(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    padding = {} if kind is nn.Linear else {"padding": 1, "stride": 2}
    layer = make_layer(kind, options, **padding)
    batchnorm = make_batchnorm(4, layer.weight.dim(), affine=False)
    assert isinstance(batchnorm.running_mean, Tensor)
    batchnorm.running_mean.zero_()
    x = make_input(layer)
    torch.testing.assert_close(folded(layer, fold_before, batchnorm)(x), layer(batchnorm(x)))


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"eps": 0.3}, {"eps": 1e-12}, {"eps": 1e-45}],  # PyTorch 2.11 refuses 0
    ids=["plain", "eps0.3", "eps1e-12", "least eps"],
)
def test_fold_after_uses_the_batchnorms_own_options(options: dict[str, Any]) -> None:
    check_fold_after(make_layer(nn.Conv2d, {}), make_batchnorm(8, 4, **options))


def test_a_channel_of_no_variance_folds_with_the_batchnorms_eps() -> None:
    batchnorm = make_batchnorm(8, 4, eps=1e-3)
    assert isinstance(batchnorm.running_var, Tensor)
    batchnorm.running_var[:4] = 0
    check_fold_after(make_layer(nn.Conv2d, {}), batchnorm)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.2])
def test_a_frozen_batchnorm_folds_like_the_usual_one(eps: float) -> None:
    frozen = FrozenBatchNorm2d(8, eps=eps)
    randomize_batchnorms(frozen)
    check_fold_after(make_layer(nn.Conv2d, {}), frozen)
    layer, x = make_layer(nn.Conv2d, {}), torch.randn(2, 4, 5, 5)
    frozen = FrozenBatchNorm2d(4, eps=eps)
    randomize_batchnorms(frozen)
    torch.testing.assert_close(folded(layer, fold_before, frozen)(x), layer(frozen(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fold", [fold_after, fold_before])
def test_folding_rounds_once_to_the_layers_dtype(fold: Any, dtype: torch.dtype) -> None:
    layer = make_layer(nn.Conv2d, {}).to(dtype)
    batchnorm = make_batchnorm(8 if fold is fold_after else 4, 4).to(dtype)
    ours = folded(layer, fold, batchnorm)
    exact = folded(copy.deepcopy(layer).double(), fold, copy.deepcopy(batchnorm).double())
    assert ours.weight.dtype == dtype
    assert ours.bias is not None
    assert ours.bias.dtype == dtype
    assert exact.bias is not None
    tolerance = torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 4)
    torch.testing.assert_close(ours.weight.double(), exact.weight, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours.bias.double(), exact.bias, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_a_half_model_folds_to_within_its_own_rounding(dtype: torch.dtype, rtol: float) -> None:
    layer = make_layer(nn.Conv2d, {}).to(dtype)
    batchnorm = make_batchnorm(8, 4).to(dtype)
    x = make_input(layer)
    torch.testing.assert_close(
        folded(layer, fold_after, batchnorm)(x), batchnorm(layer(x)), rtol=rtol, atol=rtol
    )


@pytest.mark.parametrize("fold", [fold_after, fold_before])
def test_parameters_shared_with_another_module_stay(fold: Any) -> None:
    layer, other = make_layer(nn.Conv2d, {}), make_layer(nn.Conv2d, {})
    other.weight, other.bias = layer.weight, layer.bias
    before = copy.deepcopy(other.state_dict())
    fold(layer, *scale_and_shift(make_batchnorm(8 if fold is fold_after else 4, 4)))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert layer.weight is not other.weight
    assert not torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_new_parameters_are_leaves_and_train_as_the_old_did(requires_grad: bool) -> None:
    layer = make_layer(nn.Conv2d, {}, bias=False).requires_grad_(requires_grad)
    fold_after(layer, *scale_and_shift(make_batchnorm(8, 4)))
    for parameter in (layer.weight, layer.bias):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad == requires_grad
        assert parameter.is_leaf


def test_fold_before_gives_a_bias_for_each_output_of_its_own_storage() -> None:
    layer = make_layer(nn.Conv2d, {}, bias=False)
    fold_before(layer, torch.ones(4), torch.zeros(4))
    assert layer.bias is not None
    assert layer.bias.shape == (8,)
    assert layer.bias.stride() == (1,)  # not a scalar seen eight times
    assert not layer.bias.any()


@pytest.mark.parametrize("fold", [fold_before, fold_after])
def test_the_bias_of_a_single_output_can_be_viewed_as_bytes(fold: Any) -> None:
    layer = nn.Linear(1, 1, bias=False)
    fold(layer, torch.ones(1), torch.zeros(1))
    assert layer.bias.stride() == (1,)


def test_scale_and_shift_by_hand() -> None:
    batchnorm = nn.BatchNorm2d(1, eps=1.0).eval()
    for tensor, value in zip(
        (batchnorm.running_mean, batchnorm.running_var, batchnorm.weight, batchnorm.bias),
        (5.0, 3.0, 4.0, 1.0),
        strict=True,
    ):
        assert tensor is not None
        tensor.data.fill_(value)
    scale, shift = scale_and_shift(batchnorm)  # 4/√(3 + 1), 1 - 5·2
    assert (scale.item(), shift.item()) == (2.0, -9.0)
    assert not scale.requires_grad
    assert not shift.requires_grad


@pytest.mark.parametrize(
    ("batchnorm", "reason"),
    [
        (nn.BatchNorm2d(4).eval(), None),
        (nn.BatchNorm1d(4, affine=False).eval(), None),
        (nn.SyncBatchNorm(4).eval(), None),
        (FunctionalBatchNorm(4).eval(), None),
        (FrozenBatchNorm2d(4), None),
        (FrozenBatchNorm2d(4).train(), None),
        (nn.BatchNorm2d(4), "it is in training mode: it normalizes by each batch's own statistics"),
        (
            nn.BatchNorm2d(4, track_running_stats=False).eval(),
            "it has no running statistics: it normalizes by each batch's own",
        ),
    ],
    ids=str,
)
def test_why_not_affine_gives_the_reason(batchnorm: BatchNorm, reason: str | None) -> None:
    assert why_not_affine(batchnorm) == reason


class Activated(nn.BatchNorm2d):
    """Like timm's: a batch norm and a ReLU in one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Named(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("module", "known"),
    [
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm3d(4), True),
        (nn.SyncBatchNorm(4), True),
        (FrozenBatchNorm2d(4), True),
        (FunctionalBatchNorm(4), True),
        (Named(4), True),
        (Activated(4), False),
        (nn.InstanceNorm2d(4), False),
        (nn.LayerNorm(4), False),
        (None, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batchnorm_is_what_computes_one(module: nn.Module | None, known: bool) -> None:
    assert is_batchnorm_module(module) is known


def test_a_functional_batchnorm_takes_every_rank() -> None:
    batchnorm = FunctionalBatchNorm(4).eval()
    randomize_batchnorms(batchnorm)
    scale, shift = scale_and_shift(batchnorm)
    for rank in range(2, 7):
        x = torch.randn(3, 4, *[2] * (rank - 2))
        wide = (4, *[1] * (rank - 2))
        expected = x * scale.reshape(wide) + shift.reshape(wide)
        torch.testing.assert_close(batchnorm(x), expected)


def test_fold_after_scales_rows_and_shifts_the_bias() -> None:
    layer = make_layer(nn.ConvTranspose2d, {"groups": 2})
    assert is_transposed(layer)
    assert layer.bias is not None
    scale, shift = torch.rand(8) + 0.5, torch.randn(8)
    rows, bias = output_rows(layer, layer.weight.detach()), layer.bias.detach()
    fold_after(layer, scale, shift)
    torch.testing.assert_close(output_rows(layer, layer.weight.detach()), rows * scale[:, None])
    torch.testing.assert_close(layer.bias.detach(), bias * scale + shift)
