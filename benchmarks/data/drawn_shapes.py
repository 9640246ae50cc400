"""Write drawn shapes as data sets in ImageNet's, COCO's and VOC's own formats.

    write_imagenet(folder, train=1000, val=200)     train/n00000000/*.JPEG, val/…
    write_coco(folder, train=1000, val=200)         train2017/*.jpg, annotations/instances_*.json, …
    write_voc(folder, train=1000, val=200)          VOCdevkit/VOC2012/{JPEGImages,…}

Squares, discs, stars and others lie apart on a noisy background. The same seed draws the same
pictures. A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

SHAPES = ("square", "disc", "triangle", "cross", "ring", "diamond", "star", "bar", "moon", "frame")
SCENE_SHAPES = SHAPES[:6]
"""Of the pictures with several shapes; their class there is the place in this list plus 1."""
VOID = 255
"""The class of a pixel at the edge of a shape, as in VOC."""

_SPIKES = [
    (0.5 + r * math.sin(math.pi * i / 5), 0.5 - r * math.cos(math.pi * i / 5))
    for i, r in enumerate([0.5, 0.2] * 5)
]
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "frame": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "bar": [(0, 0.35), (1, 0.35), (1, 0.65), (0, 0.65)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _SPIKES,
    "cross": [
        *[(0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)],
        *[(0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)],
    ],
}


@dataclass(frozen=True)
class Drawn:
    """One shape of a picture."""

    shape: str
    mask: NDArray[np.bool_]
    """(height, width) of the picture: which pixels it covers."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, width and height in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def draw_mask(shape: str, size: tuple[int, int], box: Sequence[float]) -> NDArray[np.bool_]:
    """Return which pixels of a picture of `size` (width, height) a shape covers.

    Args:
        shape: one of `SHAPES`.
        size: of the picture.
        box: left, top, width, height of the shape.
    """
    left, top, width, height = box
    picture = Image.new("1", size)
    draw = ImageDraw.Draw(picture)

    def corners(x0: float, y0: float, x1: float, y1: float) -> list[float]:
        return [left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height]

    if shape in _POLYGONS:
        draw.polygon([(left + x * width, top + y * height) for x, y in _POLYGONS[shape]], fill=1)
    else:
        draw.ellipse(corners(0, 0, 1, 1), fill=1)
    if shape == "ring":
        draw.ellipse(corners(0.28, 0.28, 0.72, 0.72), fill=0)
    if shape == "moon":
        draw.ellipse(corners(0.35, -0.05, 1.2, 0.8), fill=0)
    if shape == "frame":
        draw.rectangle(corners(0.25, 0.25, 0.75, 0.75), fill=0)
    return np.array(picture, dtype=np.bool_)


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    shapes: Sequence[str],
    sides: tuple[float, float],
) -> tuple[Image.Image, list[Drawn]]:
    """Return a picture of `size` (width, height) and what of `shapes` was drawn there, apart.

    `sides` are the least and the greatest side of a shape, in pixels. At least one is drawn; others
    only where there is room.
    """
    width, height = size
    ground, slope = rng.uniform(40, 215, 3), rng.uniform(-60, 60, 3)
    ramp = np.linspace(-0.5, 0.5, width)[None, :, None] * slope
    pixels = ground + ramp + rng.normal(0, rng.uniform(4, 22), (height, width, 3))
    taken = np.zeros((height, width), dtype=np.bool_)
    drawn: list[Drawn] = []
    for shape in shapes:
        side = math.exp(rng.uniform(math.log(sides[0]), math.log(min(sides[1], *size) - 2)))
        aspect = rng.uniform(0.88, 1.0)
        w, h = (side, side * aspect) if rng.random() < 0.5 else (side * aspect, side)
        left, top = rng.uniform(0, width - 1 - w), rng.uniform(0, height - 1 - h)
        around = np.s_[int(top) : math.ceil(top + h) + 1, int(left) : math.ceil(left + w) + 1]
        if taken[around].any():
            continue
        taken[around] = True
        mask = draw_mask(shape, size, (left, top, w, h))
        color = rng.uniform(0, 255, 3)
        while np.abs(color - ground).max() < 70:
            color = rng.uniform(0, 255, 3)
        pixels[mask] = color + rng.normal(0, rng.uniform(2, 14), (int(mask.sum()), 3))
        drawn.append(Drawn(shape, mask))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), drawn


def write_imagenet(folder: Path, train: int, val: int, seed: int = 0) -> None:
    """Write pictures of one shape each, a class folder for each of `SHAPES`."""

    def write(root: Path) -> None:
        rng = np.random.default_rng(seed)
        for split, number in _splits(train, val):
            shape = SHAPES[number % len(SHAPES)]
            size = (int(rng.integers(48, 61)), int(rng.integers(48, 61)))
            picture, _ = draw_scene(rng, size, [shape], (22, 48))
            path = root / split / f"n{number % len(SHAPES):08d}" / f"{split}_{number:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90)

    _write_whole(folder, write)


def write_coco(folder: Path, train: int, val: int, seed: int = 1) -> None:
    """Write pictures of up to six shapes, small, medium and large ones, with their boxes."""

    def write(root: Path) -> None:
        rng = np.random.default_rng(seed)
        (root / "annotations").mkdir()
        files: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for split, number in _splits(train, val):
            picture, drawn = _draw_several(rng, (240, 192), (18, 150))
            content = files.setdefault(split, {"images": [], "annotations": []})
            name, size = f"{number:012d}.jpg", {"width": picture.width, "height": picture.height}
            content["images"].append({"id": number, "file_name": name, **size})
            for each in drawn:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": SCENE_SHAPES.index(each.shape) + 1,
                        "bbox": list(each.box),
                        "area": int(each.mask.sum()),
                        "iscrowd": 0,
                    }
                )
            (root / f"{split}2017").mkdir(exist_ok=True)
            picture.save(root / f"{split}2017" / name, quality=90)
        categories = [{"id": i + 1, "name": shape} for i, shape in enumerate(SCENE_SHAPES)]
        for split, content in files.items():
            path = root / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps({**content, "categories": categories}))

    _write_whole(folder, write)


def write_voc(folder: Path, train: int, val: int, seed: int = 2) -> None:
    """Write pictures of up to six shapes with palette masks, edges marked as void."""

    def write(root: Path) -> None:
        rng = np.random.default_rng(seed)
        base = root / "VOCdevkit" / "VOC2012"
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (base / name).mkdir(parents=True)
        names: dict[str, list[str]] = {}
        for split, number in _splits(train, val):
            picture, drawn = _draw_several(rng, (128, 96), (16, 72))
            classes = np.zeros((picture.height, picture.width), dtype=np.uint8)
            for each in drawn:
                classes[each.mask] = SCENE_SHAPES.index(each.shape) + 1
                classes[_edge(each.mask)] = VOID
            mask = Image.fromarray(classes).convert("P")
            mask.putpalette([value * 83 % 256 for value in range(768)])
            name = f"2012_{number:06d}"
            mask.save(base / "SegmentationClass" / f"{name}.png")
            picture.save(base / "JPEGImages" / f"{name}.jpg", quality=90)
            names.setdefault(split, []).append(name)
        for split, listed in names.items():
            path = base / "ImageSets" / "Segmentation" / f"{split}.txt"
            path.write_text("\n".join(listed) + "\n")

    _write_whole(folder, write)


def _draw_several(
    rng: np.random.Generator, size: tuple[int, int], sides: tuple[float, float]
) -> tuple[Image.Image, list[Drawn]]:
    """Return a landscape or portrait picture of up to six shapes of `SCENE_SHAPES`."""
    turned = size if rng.random() < 0.7 else size[::-1]
    shapes = rng.choice(SCENE_SHAPES, int(rng.integers(1, 7)))
    return draw_scene(rng, (turned[0], turned[1]), [str(each) for each in shapes], sides)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels outside of a shape that touch it."""
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return around & ~mask


def _splits(train: int, val: int) -> Iterable[tuple[str, int]]:
    """Return the split and number of each picture; `val` first, so `train` does not change it."""
    numbers = [*[("val", i) for i in range(val)], *[("train", i) for i in range(train)]]
    return tqdm(numbers, "drawing", disable=None, unit="picture")


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then give it its name."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    unfinished.replace(folder)
