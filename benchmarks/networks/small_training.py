"""How the small models are trained: an optimizer, and each kind's losses on its drawn pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from benchmarks.data.datasets import Coco, ImageNet, Voc
from benchmarks.data.drawn_shapes import SHAPES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 48
"""Of the classifier's pictures, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is drawn, and how long is trained."""

    train: int
    val: int
    epochs: int
    batch_size: int
    learning_rate: float
    """The greatest one."""


def prepare_picture(name: str, image: Image.Image) -> Tensor:
    """Return a picture as the input (3, H, W) of the small model `name`."""
    if name == "small_retinanet":  # it normalizes by itself
        return torch.div(pil_to_tensor(image), 255)
    resized = image.resize((SIDE, SIDE)) if name == "small_resnet" else image
    return normalize(pil_to_tensor(resized))


def normalize(images: Tensor) -> Tensor:
    """Return pictures (..., 3, H, W) of bytes as torchvision's classifiers want them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images / 255 - mean) / std


def fit(model: nn.Module, losses: Callable[[], Iterator[Tensor]], plan: Plan) -> None:
    """Take a step of AdamW for each loss that `losses()` yields, epoch after epoch."""
    if plan.epochs == 0:
        return
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=0.02)
    steps = plan.epochs * -(-plan.train // plan.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, steps)
    model.train()
    with tqdm(total=steps, desc=f"training {type(model).__name__}", disable=None) as bar:
        for _ in range(plan.epochs):
            for loss in losses():
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def classifier_losses(model: nn.Module, folder: Path, plan: Plan) -> Callable[[], Iterator[Tensor]]:
    """Return what yields one epoch of losses: cross-entropy on shifted pictures."""
    data = ImageNet(folder, len(SHAPES), "train")
    pairs = [data[i] for i in range(len(data))]
    pixels = torch.stack([pil_to_tensor(image.resize((SIDE, SIDE))) for image, _ in pairs])
    labels = torch.tensor([label for _, label in pairs])

    def losses() -> Iterator[Tensor]:
        for batch in torch.split(torch.randperm(len(labels)), plan.batch_size):
            shift = torch.randint(-4, 5, (2,)).tolist()
            moved = torch.roll(normalize(pixels[batch]), shift, dims=(2, 3))
            yield F.cross_entropy(model(moved), labels[batch], label_smoothing=0.05)

    return losses


def detector_losses(model: nn.Module, folder: Path, plan: Plan) -> Callable[[], Iterator[Tensor]]:
    """Return what yields one epoch of losses: RetinaNet's losses on pictures, mirrored or not."""
    data = Coco(folder, "train")
    images = [pil_to_tensor(data[i][0]) for i in range(len(data))]
    targets = [data.boxes(image_id) for image_id in data.ids]

    def mirrored(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, boxes = images[i] / 255, targets[i]["boxes"].clone()
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
        return image, {**targets[i], "boxes": boxes}

    def losses() -> Iterator[Tensor]:
        for batch in torch.split(torch.randperm(len(images)), plan.batch_size):
            pairs = [mirrored(int(i)) for i in batch]
            parts = model([image for image, _ in pairs], [target for _, target in pairs])
            yield torch.stack(list(parts.values())).sum()

    return losses


def segmenter_losses(model: nn.Module, folder: Path, plan: Plan) -> Callable[[], Iterator[Tensor]]:
    """Return what yields one epoch of losses: cross-entropy on crops, mirrored or not."""
    data = Voc(folder, "train")
    pairs = [(pil_to_tensor(image), mask) for image, mask in (data[i] for i in range(len(data)))]

    def cropped(i: int, side: int = 96) -> tuple[Tensor, Tensor]:
        image, mask = pairs[i]
        top = int(torch.randint(0, mask.shape[0] - side + 1, ()))
        left = int(torch.randint(0, mask.shape[1] - side + 1, ()))
        part = (..., slice(top, top + side), slice(left, left + side))
        flip = [-1] if torch.rand(()) < 0.5 else []
        return image[part].flip(flip), mask[part].flip(flip)

    def losses() -> Iterator[Tensor]:
        for batch in torch.split(torch.randperm(len(pairs)), plan.batch_size):
            images, masks = zip(*map(cropped, batch.tolist()), strict=True)
            logits = model(normalize(torch.stack(images)))["out"]
            yield F.cross_entropy(logits, torch.stack(masks), ignore_index=255)

    return losses
