"""Read ImageNet, COCO and VOC folders as these data sets are distributed.

    ImageNet(folder)    val/<wnid>/*.JPEG, or the folder of class folders itself
    Coco(folder)        val2017/*.jpg and annotations/instances_val2017.json
    Voc(folder)         VOCdevkit/VOC2012, VOC2012, or the folder with JPEGImages in it

Each gives (image in RGB, target) pairs; what a folder lacks is said in one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.datasets import ImageFolder

_IMAGES = (".jpeg", ".jpg", ".png")


class Data(Protocol):
    """Images with what is known of them."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, object]:
        """Return an image in RGB and its target."""

    def files(self) -> Iterator[Path]:
        """Yield every file that is read."""


def class_indices(folder: Path, folders: list[str], num_classes: int = 1000) -> list[int]:
    """Return the class index of each class folder: its line in `wnids.txt`, else its place.

    The list may lie in `folder` or beside it.
    """
    listed = next((path for path in _wnid_lists(folder) if path.exists()), None)
    if listed is None:
        if len(folders) != num_classes:
            raise SystemExit(
                f"{folder}: expected {num_classes:,} class folders, or {folder.parent}/wnids.txt "
                f"to give each its index; found {len(folders)} folders and no such file"
            )
        return list(range(num_classes))
    index = {wnid: number for number, wnid in enumerate(listed.read_text().split())}
    missing = [name for name in folders if name not in index]
    if missing:
        raise SystemExit(f"{listed}: the class folder {missing[0]} of {folder} is not in it")
    return [index[name] for name in folders]


def _wnid_lists(folder: Path) -> tuple[Path, Path]:
    return folder / "wnids.txt", folder.parent / "wnids.txt"


class ImageNet:
    """(image, class index) of each file in the class folders."""

    def __init__(self, folder: Path, num_classes: int = 1000, split: str = "val") -> None:
        folder = folder / split if (folder / split).is_dir() else folder
        found = _content(folder)
        if not any(path.is_dir() and _has_images(path) for path in found):
            raise SystemExit(
                f"{folder}: expected ImageNet's class folders, as in {split}/n01440764/*.JPEG; "
                f"found {_listing(found)}"
            )
        self._folder = ImageFolder(str(folder), allow_empty=True)
        self._indices = class_indices(folder, self._folder.classes, num_classes)
        self._list = [path for path in _wnid_lists(folder) if path.exists()][:1]

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._folder[index]
        return image, self._indices[label]

    def files(self) -> Iterator[Path]:
        """Yield every file that is read."""
        yield from self._list
        yield from (Path(path) for path, _ in self._folder.samples)


class Coco:
    """(image, image id) of each image that the annotations list."""

    def __init__(self, folder: Path, split: str = "val") -> None:
        self._folder = folder / f"{split}2017"
        self._annotations = folder / "annotations" / f"instances_{split}2017.json"
        if not (self._folder.is_dir() and self._annotations.is_file()):
            raise SystemExit(
                f"{folder}: expected COCO's {split}2017/*.jpg and annotations/"
                f"{self._annotations.name}; found {_listing(_content(folder))}"
            )
        self.ground_truth = _read_annotations(self._annotations)
        self.ids = sorted(self.ground_truth.imgs)
        missing = [path for path in self._paths() if not path.exists()]
        if missing:
            raise SystemExit(
                f"{self._annotations}: {len(missing)} of its {len(self.ids)} images are not in "
                f"{self._folder}, {missing[0].name} to begin with"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return _read_rgb(self._path(self.ids[index])), self.ids[index]

    def boxes(self, image_id: int) -> dict[str, Tensor]:
        """Return boxes (N, 4) as left, top, right, bottom, and labels (N,); no crowds."""
        listed = self.ground_truth.imgToAnns[image_id]
        kept = [each for each in listed if not each["iscrowd"] and min(each["bbox"][2:]) > 0]
        boxes = torch.tensor([each["bbox"] for each in kept], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return {"boxes": boxes, "labels": torch.tensor([each["category_id"] for each in kept])}

    def files(self) -> Iterator[Path]:
        """Yield every file that is read."""
        yield self._annotations
        yield from self._paths()

    def _path(self, image_id: int) -> Path:
        return Path(self._folder / self.ground_truth.imgs[image_id]["file_name"])

    def _paths(self) -> Iterable[Path]:
        return map(self._path, self.ids)


class Voc:
    """(image, mask) of each image of the segmentation list; a mask is (H, W) of class indices."""

    def __init__(self, folder: Path, split: str = "val") -> None:
        above = [folder / "VOCdevkit" / "VOC2012", folder / "VOC2012", folder]
        base = next((path for path in above if (path / "JPEGImages").is_dir()), folder)
        self._list = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not (self._list.is_file() and (base / "SegmentationClass").is_dir()):
            raise SystemExit(
                f"{folder}: expected VOC's JPEGImages, SegmentationClass and ImageSets/"
                f"Segmentation/{split}.txt, in VOCdevkit/VOC2012 or VOC2012 or here; found "
                f"{_listing(_content(base))}"
            )
        names = self._list.read_text().split()
        self._images = [base / "JPEGImages" / f"{name}.jpg" for name in names]
        self._masks = [base / "SegmentationClass" / f"{name}.png" for name in names]
        missing = [path for path in (*self._images, *self._masks) if not path.exists()]
        if missing or not names:
            what = f"there is no {missing[0]}" if missing else "it is empty"
            raise SystemExit(f"{self._list}: {what}")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        with Image.open(self._masks[index]) as mask:
            if mask.mode not in ("P", "L"):
                raise SystemExit(
                    f"{self._masks[index]}: expected a palette image of class indices, as VOC's "
                    f"masks are; found mode {mask.mode}"
                )
            classes = torch.from_numpy(np.array(mask, dtype=np.int64))
        return _read_rgb(self._images[index]), classes

    def files(self) -> Iterator[Path]:
        """Yield every file that is read."""
        yield from (self._list, *self._images, *self._masks)


def fingerprint(data: Data) -> str:
    """Return a hash of the names and sizes of all files."""
    digest = hashlib.sha256()
    for path in data.files():
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def _read_annotations(path: Path) -> COCO:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise SystemExit(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SystemExit(f"{path}: expected a JSON object; found a {type(content).__name__}")
    lacking = [key for key in ("images", "categories") if not content.get(key)]
    if lacking:
        raise SystemExit(f"{path}: expected COCO's images and categories; it has no {lacking[0]}")
    if not any("bbox" in each for each in content.get("annotations", [])):
        raise SystemExit(f"{path}: there are no boxes in it; give COCO's instances_*.json")
    ground_truth = COCO()
    ground_truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        ground_truth.createIndex()
    return ground_truth


def _read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _content(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SystemExit(f"{folder}: there is no such folder")
    return sorted(folder.iterdir())


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in _IMAGES for path in folder.iterdir())


def _listing(found: list[Path]) -> str:
    """Return the first names of a folder, in words."""
    names = [path.name + "/" * path.is_dir() for path in found]
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(names[:4]) + rest) or "an empty folder"
