"""The table of few bits: one cell a recipe, a placement and a width, means over draws."""

import sys

import pytest
import torch
from torch import nn

from benchmarks.rounding import low_bits


def test_recipes_are_judged_on_other_images_than_they_are_calibrated_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 10
    recipes = {"nearest": {"reconstruction": None}, "learned": {"steps": 20, "blocks": True}}
    monkeypatch.setattr(low_bits, "load_images", lambda folder: (images, labels))
    monkeypatch.setattr(low_bits, "load_network", lambda options, images: (model, images))
    monkeypatch.setattr(low_bits, "keep_memory", lambda: None)
    monkeypatch.setattr(low_bits, "RECIPES", recipes)
    options = ["low_bits", "--data", "val", "--draws", "2", "--columns", "4/8", "4/4"]
    monkeypatch.setattr(sys, "argv", options)
    low_bits.main()
    printed = capsys.readouterr().out
    rows = [f"{name}, {target}" for name in recipes for target in low_bits.PLACEMENTS]
    assert all(printed.count(row) == 1 for row in rows)
    for row in rows:
        (line,) = (each for each in printed.splitlines() if each.startswith(row))
        cells = [float(each) for each in line.removeprefix(row).split()]
        assert len(cells) == 2 * 4  # two columns of top-1, agreement, dB and seconds
        assert all(0 <= each <= 100 for each in (*cells[:2], *cells[4:6]))
        assert cells[1] > 50
