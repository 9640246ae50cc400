"""The figures of the report, in percent: top-1 and top-5, COCO's average precisions, mean IoU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_iou

AVERAGE_PRECISIONS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
"""As COCOeval lists them: at IoU 0.5 to 0.95, 0.5, 0.75; of small, medium, large objects."""
MIN_SCORE, MIN_IOU = 0.3, 0.9
"""Which detections of the float model are looked for, and how near another one has to be."""

Detections = dict[str, Tensor]
"""Of one image: boxes (N, 4) as left, top, right, bottom; labels (N,); scores (N,)."""


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> int:
    """Return for how many rows of `logits` (N, classes) the label (N,) is among the k greatest."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return int((best == labels[:, None]).any(dim=1).sum())


def count_pixels(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix (num_classes, num_classes): rows are labels.

    `predicted` and `labels` are of one shape; pixels of label 255 do not count.

    Raises:
        SystemExit: a label is of no class.
    """
    known = labels != 255
    predicted, labels = predicted[known], labels[known]
    if len(labels) and int(labels.max()) >= num_classes:
        raise SystemExit(
            f"a mask has a pixel of class {int(labels.max())}; the model has classes 0 to "
            f"{num_classes - 1}"
        )
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


def mean_iou(confusion: Tensor) -> float:
    """Return the mean over all classes that were seen or predicted of intersection over union."""
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean()) * 100


def average_precisions(
    ground_truth: COCO, detections: dict[int, Detections]
) -> dict[str, float | None]:
    """Return `AVERAGE_PRECISIONS` of detections by image id; None: there is no object of that size.

    The images are those in `detections`.
    """
    found = COCO()
    found.dataset = {
        "images": [ground_truth.imgs[each] for each in detections],
        "categories": ground_truth.dataset["categories"],
        "annotations": [
            {"id": number, **each} for number, each in enumerate(_as_coco(detections), start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # COCOeval prints
        found.createIndex()
        evaluation = COCOeval(ground_truth, found, "bbox")
        evaluation.params.imgIds = sorted(detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = np.asarray(evaluation.stats)[: len(AVERAGE_PRECISIONS)]
    return {
        name: None if value < 0 else float(value) * 100
        for name, value in zip(AVERAGE_PRECISIONS, values, strict=True)
    }


def _as_coco(detections: dict[int, Detections]) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = []
    for image_id, found in detections.items():
        columns = (found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist())
        for (left, top, right, bottom), label, score in zip(*columns, strict=True):
            width, height = right - left, bottom - top
            listed.append(
                {
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return listed


def share_matched(expected: Sequence[Detections], found: Sequence[Detections]) -> float | None:
    """Return how many of `expected`, of scores above `MIN_SCORE`, have their like in `found`.

    That is a box of the same class with an IoU above `MIN_IOU`, whatever its score. None: none is
    expected.
    """
    matched = total = 0
    for mine, other in zip(expected, found, strict=True):
        sure = mine["scores"] > MIN_SCORE
        boxes, labels = mine["boxes"][sure], mine["labels"][sure]
        near = box_iou(boxes, other["boxes"]) > MIN_IOU
        alike = near & (labels[:, None] == other["labels"])
        matched += int(alike.any(dim=1).sum())
        total += len(boxes)
    return matched / total * 100 if total else None
