"""lost_where tells the inputs of a mobile network's layers apart, and gives each group few bits."""

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from benchmarks.rounding import lost_where
from fxquant.modules.fake_quantize import FakeQuantize


def mobile() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 8, 1), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip


def test_groups_go_by_the_layer_that_reads() -> None:
    assert lost_where.groups_of(mobile()) == {
        "image": ["0"], "block inputs": ["2"], "expanded": ["4"], "depthwise outputs": ["6"],
        "pooled": ["9"],
    }  # fmt: skip


class Padded(nn.Conv2d):
    """As in EfficientNet-Lite0's package: a convolution that calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.groups)


def test_functional_convolutions_are_told_apart_too() -> None:
    model = mobile()
    model[0], model[4] = Padded(3, 4, 3), Padded(8, 8, 3, groups=8)
    found = lost_where.groups_of(model)
    assert [len(found[group]) for group in lost_where.GROUPS] == [1, 1, 1, 1, 1]
    recipe = {name: each for _, name, each in lost_where.recipes_of(model, 4)}["expanded alone"]
    quantized = fxquant.quantize(model, [torch.rand(4, 3, 12, 12)], recipe, progress=False)
    rounded = [each for each in quantized.modules() if isinstance(each, FakeQuantize)]
    assert [each.spec.bits for each in rounded] == [8, 8, 4, 8, 8]


def test_a_group_that_nothing_reads_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no layer reads expanded, depthwise outputs: the rows"):
        lost_where.groups_of(
            nn.Sequential(*[mobile()[i] for i in (0, 1, 2, 7, 8)], nn.Linear(8, 3))
        )


def test_a_row_gives_its_group_few_bits_and_all_else_eight() -> None:
    model, x = mobile(), torch.rand(4, 3, 12, 12)
    rows = {name: recipe for _, name, recipe in lost_where.recipes_of(model, 4)}
    for name, expected in {
        "nothing": [8, 8, 8, 8, 8],
        "all activations": [4, 4, 4, 4, 4],
        "expanded alone": [8, 8, 4, 8, 8],
        "all activations but pooled": [4, 4, 4, 4, 8],
    }.items():
        quantized = fxquant.quantize(model, [x], rows[name], progress=False)
        rounded = [each for each in quantized.modules() if isinstance(each, FakeQuantize)]
        assert [each.spec.bits for each in rounded] == expected, name


def test_the_table_has_a_row_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = torch.rand(8, 3, 12, 12), torch.zeros(8, dtype=torch.int64)
    monkeypatch.setattr(lost_where, "load_images", lambda folder: (images, labels))
    monkeypatch.setattr(lost_where, "load_network", lambda options, images: (mobile(), images))
    monkeypatch.setattr(lost_where, "keep_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["lost_where", "--data", "val", "--bits", "3"])
    lost_where.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("at 3 bits")
    assert [line.split("  ")[0] for line in lines[2:5]] == ["float", "nothing", "weights"]
    assert len(lines) == 2 + 4 + 2 * len(lost_where.GROUPS)
