"""Batches and layers in a few words."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fxquant.calling.description import described, described_layer, in_brackets

X = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X.to(torch.uint8), "uint8 4×3×8×8"),
        (X.to("meta", torch.bfloat16), "bfloat16 4×3×8×8 on meta"),
        (torch.tensor(3), "int64 scalar"),
        ((X, 7), "(float32 4×3×8×8, 7)"),
        ([X[0]] * 5, "[float32 3×8×8, float32 3×8×8, float32 3×8×8, … 5 in all]"),
        (OrderedDict(x=X, label=None), "{x: float32 4×3×8×8, label: None}"),
        ({str(key): key for key in range(6)}, "{0: 0, 1: 1, 2: 2, … 6 in all}"),
        (np.zeros((4, 3)), "a NumPy array float64 4×3"),
        (Image.new("L", (6, 5)), "a PIL image L 6×5"),
        (Path("photos/train"), "'photos/train'"),
        ("a" * 50, f"'{'a' * 40}…'"),
        (None, "None"),
        (2.5, "2.5"),
        (nn.ReLU(), "a ReLU"),
        (torch.finfo(torch.half), "a finfo"),
    ],
    ids=str,
)
def test_types_and_shapes_are_named(value: Any, expected: str) -> None:
    assert described(value) == expected


def test_a_container_has_brackets_of_its_own() -> None:
    assert in_brackets(X) == "(float32 4×3×8×8)"
    assert in_brackets([X]) == "[float32 4×3×8×8]"
    assert in_brackets({"x": X}) == "{x: float32 4×3×8×8}"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ConvTranspose1d(3, 8, 2), "ConvTranspose1d 3→8"),
        (nn.Linear(5, 2), "Linear 5→2"),
        (nn.Embedding(100, 8), "Embedding 100→8"),
        (nn.BatchNorm2d(8), "BatchNorm2d 8"),
        (nn.LayerNorm(8), "LayerNorm"),
        (nn.Sequential(), "Sequential"),
    ],
    ids=str,
)
def test_a_layer_is_named_with_its_sizes(module: nn.Module, expected: str) -> None:
    assert described_layer(module) == expected
