"""Quantize a torchvision classifier by every range method on an ImageNet folder; print the table.

    python -m benchmarks.ranges.imagenet --model squeezenet1_1 --data imagenet/val --weights FILE

`--data` is a folder of class folders, named by WordNet id, as ImageNet's validation set is usually
laid out. A class's index is the place of its id in `wnids.txt` beside the folder, one id a line;
without that file, among the sorted folders, of which there must then be 1,000. `--weights` is a
state dict (.safetensors or .pth); without it torchvision's pretrained weights are loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torchvision import transforms

from benchmarks.data.datasets import ImageNet
from benchmarks.data.pretrained import load_model
from benchmarks.judging.comparison import activation_recipes, compare, table

PREPROCESS = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


def load_images(folder: Path, max_images: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 224, 224) and class indices (N,), shuffled by a fixed seed."""
    data = ImageNet(folder)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    pairs = [data[int(i)] for i in order[:max_images]]
    images = torch.stack([PREPROCESS(image) for image, _ in pairs])
    return images, torch.tensor([label for _, label in pairs])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--calibration", type=int, default=64, help="number of images")
    parser.add_argument("--images", type=int, help="evaluate on so many only")
    options = parser.parse_args()
    images, labels = load_images(options.data, options.images)
    model = load_model(options.model, options.weights)
    calibration = images[: options.calibration]
    print(table(compare(model, activation_recipes(), calibration, images, labels, batch_size=16)))


if __name__ == "__main__":
    main()
