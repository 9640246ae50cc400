"""Ways out that the form of a batch shows, and none where it is as it should be.

What they say in whole messages is in `tests/test_mistakes.py`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxquant import CalibrationError
from fxquant.calling.batch_hints import way_from_keys, way_to_tensors
from fxquant.calling.explanation import explained
from tests.helpers import Net

IMAGE = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("value", "where", "expected"),
    [
        (np.zeros(4, np.float32), "batch 0", "give tensors: torch.from_numpy(x)"),
        ((1, 3, 8, 8), "example_inputs", "a shape is no input: give torch.randn(1, 3, 8, 8)"),
        ("hello world", "batch 0", "give tensors, tuples or lists that start with one, or dicts"),
        (4, "lower: example_inputs", "give one batch: a tensor, a tuple of arguments, or a dict"),
    ],
    ids=["array", "shape", "text", "number"],
)
def test_there_is_a_way_to_tensors(value: Any, where: str, expected: str) -> None:
    assert way_to_tensors(value, where).startswith(expected)


def test_a_key_is_proposed_only_where_one_alone_holds_a_batch() -> None:
    model = Net(lambda m, x: x)
    one, two = {"image": torch.zeros(2, 4)}, {"left": torch.zeros(2, 4), "right": torch.zeros(2, 4)}
    assert "give batch['image']" in way_from_keys(model, {**one, "label": torch.zeros(2)})
    assert "give dicts with these keys" in way_from_keys(model, two)


def said(model: nn.Module, batch: Any, given: Any) -> str:
    with pytest.raises(CalibrationError) as raised, explained("batch 0", batch):
        model(given)
    return str(raised.value)


def test_a_list_of_images_is_no_sample_without_a_batch() -> None:
    def fail(m: Any, images: Any) -> Any:
        return torch.zeros(2)[len(images) + 5]

    model = Net(fail, conv=nn.Conv2d(3, 8, 3))
    assert "one sample" not in said(model, [IMAGE], [IMAGE])
    assert "one sample" in said(model, IMAGE, IMAGE)


def test_a_model_that_makes_batches_itself_is_not_told_to() -> None:
    model = Net(lambda m, x: m.fc(m.conv(x[None])), conv=nn.Conv2d(3, 8, 3), fc=nn.Conv2d(5, 2, 1))
    assert "one sample" not in said(model, IMAGE, IMAGE)


def test_labels_are_blamed_only_where_they_were_given() -> None:
    model, labels = nn.Sequential(nn.Conv2d(3, 8, 3)), torch.arange(2)
    batch = (labels, torch.zeros(2, 3, 8, 8))
    assert "inputs come first" in said(model, batch, labels)
    assert "inputs come first" not in said(model, batch, torch.zeros(2, 5, 8, 8))
