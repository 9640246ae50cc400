"""What a classifier, a detector and a segmenter are measured by, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.data.datasets import Coco, Data, ImageNet, Voc
from benchmarks.data.pretrained import Kind
from benchmarks.judging.evaluation import (
    MIN_SCORE,
    Detections,
    average_precisions,
    count_pixels,
    mean_iou,
    share_matched,
    top_k_hits,
)

Figures = dict[str, float | None]
Answers = list[Tensor] | list[Detections]


class Inputs(Dataset[Any]):
    """(input, target) pairs of chosen images, preprocessed."""

    def __init__(
        self, data: Data, chosen: Sequence[int], preprocess: Callable[[Image.Image], Tensor]
    ) -> None:
        self._data, self._chosen, self._preprocess = data, chosen, preprocess

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = self._data[self._chosen[index]]
        return self._preprocess(image), target


@dataclass(frozen=True)
class Batches:
    """Batches of (images, targets) on a device, with a progress bar while they are gone through.

    Images are a tensor (N, 3, H, W), so only such as have one size come together; a detector's are
    a list of (3, H, W).
    """

    inputs: Inputs
    title: str
    as_lists: bool
    batch_size: int
    workers: int = 0
    device: str = "cpu"

    def __iter__(self) -> Iterator[tuple[Any, list[Any]]]:
        loader = DataLoader(
            self.inputs,
            self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),  # else it draws from PyTorch's own
        )
        with tqdm(total=len(self.inputs), desc=self.title, unit="image", disable=None) as bar:
            for samples in loader:
                for group in [samples] if self.as_lists else _of_one_shape(samples):
                    images = [image.to(self.device) for image, _ in group]
                    targets = [target for _, target in group]
                    yield images if self.as_lists else torch.stack(images), targets
                    bar.update(len(group))


def _of_one_shape(samples: list[tuple[Tensor, Any]]) -> Iterator[list[tuple[Tensor, Any]]]:
    """Yield neighbours of one shape together."""
    group = samples[:1]
    for sample in samples[1:]:
        if sample[0].shape != group[0][0].shape:
            yield group
            group = []
        group.append(sample)
    yield group


@dataclass(frozen=True)
class Task:
    """One kind of model."""

    open: Callable[[Path, int], Data]
    """From a folder and the number of classes."""
    evaluate: Callable[[nn.Module, Batches, Data], tuple[Figures, Answers]]
    agreement: Callable[[Any, Any], Figures] | None
    """How many of the float model's `Answers` (the first) are among the others; None: too many."""
    calibration: int
    """Images to calibrate with, in the report."""
    samples: int
    """Images for AdaRound, in the report."""
    batch_size: int


def evaluate_classifier(
    model: nn.Module, batches: Batches, data: Data
) -> tuple[Figures, list[Tensor]]:
    """Return top-1 and top-5, and the predicted classes."""
    hits1 = hits5 = 0
    predicted: list[Tensor] = []
    for images, targets in batches:
        logits, labels = model(images).cpu(), torch.tensor(targets)
        hits1, hits5 = hits1 + top_k_hits(logits, labels, 1), hits5 + top_k_hits(logits, labels, 5)
        predicted += logits.argmax(dim=1).unbind()
    total = len(predicted)
    return {"top-1": hits1 / total * 100, "top-5": hits5 / total * 100}, predicted


def evaluate_detector(
    model: nn.Module, batches: Batches, data: Data
) -> tuple[Figures, list[Detections]]:
    """Return COCO's average precisions, and the detections of each image."""
    assert isinstance(data, Coco)
    found: dict[int, Detections] = {}
    for images, image_ids in batches:
        for image_id, each in zip(image_ids, model(images), strict=True):
            found[image_id] = {key: each[key].cpu() for key in ("boxes", "labels", "scores")}
    return average_precisions(data.ground_truth, found), list(found.values())


def evaluate_segmenter(
    model: nn.Module, batches: Batches, data: Data
) -> tuple[Figures, list[Tensor]]:
    """Return the mean IoU at the masks' own sizes; predictions are too large to be kept."""
    confusion: Tensor | int = 0
    for images, masks in batches:
        for logits, mask in zip(model(images)["out"], masks, strict=True):
            resized = logits[None]
            if mask.shape != logits.shape[1:]:
                resized = F.interpolate(resized, mask.shape, mode="bilinear", align_corners=False)
            predicted = resized[0].argmax(dim=0).cpu()
            confusion = confusion + count_pixels(predicted, mask, len(logits))
    assert isinstance(confusion, Tensor)
    return {"mIoU": mean_iou(confusion)}, []


def sure_detections(found: Detections) -> Detections:
    """Return those that `share_matched` looks for."""
    return {key: value[found["scores"] > MIN_SCORE] for key, value in found.items()}


def _same_classes(expected: list[Tensor], found: list[Tensor]) -> Figures:
    same = torch.stack(expected) == torch.stack(found)
    return {"agrees": same.double().mean().item() * 100}


def _matched(expected: list[Detections], found: list[Detections]) -> Figures:
    return {"matched": share_matched(expected, found)}


TASKS: dict[Kind, Task] = {
    "classifier": Task(
        open=ImageNet,
        evaluate=evaluate_classifier,
        agreement=_same_classes,
        calibration=128,
        samples=128,
        batch_size=32,
    ),
    "detector": Task(
        open=lambda folder, _: Coco(folder),
        evaluate=evaluate_detector,
        agreement=_matched,
        calibration=1280,
        samples=10,
        batch_size=1,  # as torchvision's figures were measured: larger ones pad the images
    ),
    "segmenter": Task(
        open=lambda folder, _: Voc(folder),
        evaluate=evaluate_segmenter,
        agreement=None,
        calibration=32,
        samples=32,
        batch_size=4,
    ),
}
