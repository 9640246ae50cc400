"""Bounds of their own for each channel."""

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.errors import StorageError
from fxquant.modules.by_channel import ChannelClamp


@pytest.mark.parametrize(("axis", "shape"), [(-3, (2, 3, 4, 5)), (-3, (3, 4, 5)), (-1, (7, 3))])
def test_clamps_each_channel(axis: int, shape: tuple[int, ...]) -> None:
    low, high = torch.tensor([0.0, -1.0, -0.5]), torch.tensor([0.5, 0.0, 2.0])
    x = 3 * torch.randn(shape)
    y = ChannelClamp(low, high, axis)(x)
    for channel in range(3):
        mine, theirs = (each.movedim(axis, 0)[channel] for each in (y, x))
        assert torch.equal(mine, theirs.clamp(low[channel], high[channel]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_of_what_goes_by(dtype: torch.dtype) -> None:
    clamp = ChannelClamp(torch.zeros(3), torch.ones(3), -1)
    assert clamp(torch.randn(2, 3).to(dtype)).dtype == dtype
    assert clamp.to(dtype).high.dtype == dtype


def test_rescaled_clamps_rescaled_channels() -> None:
    clamp, factor = ChannelClamp(-torch.ones(3), torch.ones(3), -1), torch.tensor([0.1, 1.0, 8.0])
    x = 3 * torch.randn(5, 3)
    torch.testing.assert_close(clamp.rescaled(factor)(factor * x), factor * clamp(x))


@pytest.mark.parametrize(
    ("low", "high"),
    [(torch.ones(3), torch.zeros(3)), (torch.zeros(2), torch.ones(3)), (torch.zeros(()),) * 2],
)
def test_files_with_impossible_bounds_are_refused(low: Tensor, high: Tensor) -> None:
    with pytest.raises(ValueError, match="bounds"):
        ChannelClamp(low, high, -1).check_stored()


def test_a_file_with_impossible_bounds_is_not_even_written(tmp_path: object) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    recipe = fxquant.Recipe(weights=fxquant.TensorSpec(symmetric=True), equalization=True)
    quantized = fxquant.quantize(model, [torch.randn(2, 3, 4, 4)], recipe)
    (clamp,) = (each for each in quantized.modules() if isinstance(each, ChannelClamp))
    clamp.low.fill_(99.0)
    with pytest.raises(StorageError, match="lower bounds above the upper ones"):
        fxquant.save(quantized, f"{tmp_path}/model.pt")
