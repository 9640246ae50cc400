"""What attention leaves out."""

import math

import pytest
import torch
from torch import Tensor

from fxquant.capture.attention.masks import attention_mask, float_mask, nested_padding_mask

INF = math.inf


def test_masks_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"an attention mask is a torch.int64: give bool or float"):
        float_mask(torch.ones(2, dtype=torch.long), torch.ones(1))


def test_masks_are_added_off_the_fast_path() -> None:
    query, scores = torch.zeros(1, 2, 4), torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
    padding = torch.tensor([[False, True]])
    merged = attention_mask(query, scores, padding, 2, added_keys=1)
    assert merged.tolist() == [[[[0.0, -INF, 0.0], [-0.5, -INF, 0.0]]]]


def test_on_the_fast_path_who_sees_nothing_gives_nan() -> None:
    left_out = torch.tensor([[True, True], [False, True]])
    merged = attention_mask(torch.zeros(1, 2, 4), left_out, None, 2, fast_path="bool masks")
    assert torch.equal(merged[1], torch.tensor([0.0, -INF]))
    assert merged[0].isnan().all()
    slow = attention_mask(torch.zeros(2, 4), left_out, None, 2, fast_path="bool masks")
    assert slow.tolist() == [[-INF, -INF], [0.0, -INF]]


def padding_of(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).mul(-1e9)


def test_a_sample_that_is_cut_off_in_whole_is_computed_without_nan() -> None:
    mask = nested_padding_mask(padding_of([0, 0, 1], [1, 1, 1]), True)
    assert mask.tolist() == [[0.0, 0.0, -INF], [0.0, 0.0, 0.0]]


def test_padding_elsewhere_is_not_cut_off_if_it_is_checked() -> None:
    padding = padding_of([1, 0, 0], [0, 0, 0])
    assert torch.equal(nested_padding_mask(padding, True), padding)
    assert nested_padding_mask(padding, False)[0].tolist() == [0.0, 0.0, -INF]
