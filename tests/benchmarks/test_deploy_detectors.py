"""Detections are matched by label and overlap, each once; random detectors are woken."""

import torch
from torch import Tensor, nn

from benchmarks.deploy.detectors import compare, wake
from tests.helpers import Net

BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])


def detections(boxes: Tensor, labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    return {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def test_matches_detections_in_any_order() -> None:
    one = detections(BOXES, [1, 2], [0.9, 0.5])
    other = detections(BOXES.flip(0) + 0.25, [2, 1], [0.5, 0.75])
    found = compare([one], [other])
    assert (found.matched, found.number, found.box) == (2, 2, 0.25)
    assert abs(found.score - 0.15) < 1e-6


def test_matches_each_once_and_by_label() -> None:
    twice = detections(BOXES[:1].repeat(2, 1), [1, 1], [0.9, 0.8])
    once = detections(BOXES[:1], [1], [0.9])
    assert compare([twice], [once]).matched == 1
    assert compare([once], [detections(BOXES[:1], [2], [0.9])]).matched == 0
    assert compare([once], [detections(BOXES[:0], [], [])]).matched == 0


def test_scores_of_a_woken_detector_spread() -> None:
    net = Net(
        lambda m, xs: m.cls_logits(m.bn(m.conv(xs[0][None]))),
        conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), cls_logits=nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net.get_parameter("conv.weight").mul_(1e-6)
        images = [torch.rand(3, 16, 16)]
        wake(net, images)
        assert abs(net(images).std().item() - 3) < 0.1
