"""Windows are cut, shifted and put together again."""

import pytest
import torch

from fxquant.capture.attention.windows import merge_windows, partition_windows, window_mask


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (1, 2)])
@pytest.mark.parametrize("shift", [[0, 0], [1, 0], [1, 1]])
def test_merging_undoes_cutting(sizes: tuple[int, int], shift: list[int]) -> None:
    x = torch.randn(2, *sizes, 3)
    windows = partition_windows(x, [2, 2], shift)
    assert torch.equal(merge_windows(windows, x, [2, 2], shift), x)


def test_merging_undoes_cutting_of_videos() -> None:
    x = torch.randn(2, 3, 4, 5, 2)
    windows = partition_windows(x, [2, 2, 4], [1, 1, 2])
    assert windows.shape == (2, 2 * 2 * 2, 2 * 2 * 4, 2)
    assert torch.equal(merge_windows(windows, x, [2, 2, 4], [1, 1, 2]), x)


def test_what_the_shift_brings_in_is_not_seen() -> None:
    mask = window_mask(torch.zeros(1, 2, 4, 1), [2, 2], [0, 1])
    assert mask.shape == (2, 1, 4, 4)
    assert torch.equal(mask[0], torch.zeros(1, 4, 4))
    other = torch.tensor([0.0, -100.0])  # positions 3 and 0 of each row stand side by side
    assert torch.equal(mask[1, 0, 0], other.repeat(2))
    assert torch.equal(mask[1, 0, 1], other.flip(0).repeat(2))


def test_one_window_along_an_axis_is_not_shifted() -> None:
    x = torch.zeros(1, 2, 4, 1)
    assert torch.equal(window_mask(x, [2, 4], [1, 2]), torch.zeros(1, 1, 8, 8))
