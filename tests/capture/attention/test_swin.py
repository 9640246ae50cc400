"""Attention in shifted windows computes what torchvision's does, at sizes that fit and do not."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

import fxquant
from tests.capture.attention.test_multi_head import assert_same

SIZES: list[tuple[int, ...]] = [(8, 8), (7, 10), (4, 9), (3, 4)]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_windows_of_images(kind: Any, shift: int) -> None:
    assert_traces(kind(8, [4, 4], [shift, shift], 2), SIZES)


@pytest.mark.parametrize("shift", [[0, 0, 0], [1, 2, 0]])
def test_windows_of_videos(shift: list[int]) -> None:
    assert_traces(
        ShiftedWindowAttention3d(8, [2, 4, 4], shift, 2), [(4, 8, 8), (3, 5, 9), (1, 4, 3)]
    )


def test_the_key_bias_of_the_second_version_is_none() -> None:
    attention = ShiftedWindowAttentionV2(8, [4, 4], [0, 0], 2, qkv_bias=False, proj_bias=False)
    assert_traces(attention, SIZES[:1])


def assert_traces(attention: nn.Module, sizes: list[tuple[int, ...]]) -> None:
    """Compare an attention with its graph, all parameters drawn."""
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    gm = fxquant.trace(nn.Sequential(attention))
    attention.eval()
    for size in sizes:
        x = torch.randn(2, *size, 8)
        with torch.no_grad():
            assert_same(gm(x), attention(x))
