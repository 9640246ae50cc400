"""A small detector that cannot be traced whole, its images, and what its tests compare."""

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.numerics.decibels import sqnr
from tests.helpers import randomize_batchnorms

Images = list[Tensor]


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 8, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [y, self.second(y)]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(conv_bn(8, 8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        results = []
        for each in features:
            if (each < 0).all():  # a branch on values: only Python can take it
                continue
            y = self.tower(each)
            results += [self.scores(y), self.boxes(y)]
        return results


class Detector(nn.Module):
    """Two levels; more than 100 images at once go through `many` too."""

    num_calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.many = Backbone(), Head(), nn.Conv2d(3, 3, 1)

    def forward(self, images: Images, targets: Any = None) -> list[Tensor]:
        type(self).num_calls += 1
        x = torch.stack([image * 2 - 1 for image in images])
        if len(images) > 100:
            x = self.many(x)
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


REGIONS = ["backbone", "head.tower", "head.scores", "head.boxes"]
LAYERS = [
    "backbone.first.0",
    "backbone.second.0",
    "head.tower.0.0",
    "head.tower.1",
    "head.scores",
    "head.boxes",
]


def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector()
    randomize_batchnorms(model)
    return model.eval()


def images(number: int = 4, seed: int = 1) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(number, 3, 8, 8, generator=generator))


BATCHES = [images(4, seed) for seed in (1, 2)]


def run(model: nn.Module, *arguments: Any) -> list[Tensor]:
    with torch.no_grad():
        return model(*(arguments or (images(),)))  # type: ignore[no-any-return]


def losses(expected: list[Tensor], actual: list[Tensor]) -> list[float]:
    """Return the SQNR of each output in dB."""
    return [sqnr(*pair) for pair in zip(expected, actual, strict=True)]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
