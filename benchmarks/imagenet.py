"""Quantize a torchvision classifier by every range method on an ImageNet folder; print the table.

    python -m benchmarks.imagenet --model squeezenet1_1 --data imagenet/val --weights FILE

`--data` is a folder of class folders, named by WordNet id, as ImageNet's validation set is usually
laid out. A class's index is the place of its id in `wnids.txt` beside the folder, one id a line;
without that file, among the sorted folders, of which there must then be 1,000. `--weights` is a
state dict (.safetensors or .pth); without it torchvision's pretrained weights are loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.comparison import activation_recipes, compare, table

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
    dataset = ImageFolder(str(folder), PREPROCESS)
    listed = folder.parent / "wnids.txt"
    ids = listed.read_text().split() if listed.exists() else dataset.classes
    if not listed.exists() and len(ids) != 1000:
        raise SystemExit(
            f"{folder}: expected 1,000 class folders, or {listed} to give each its index; "
            f"found {len(ids)} folders and no such file"
        )
    index = {wnid: number for number, wnid in enumerate(ids)}
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    items = [dataset[int(i)] for i in order[:max_images]]
    labels = [index[dataset.classes[label]] for _, label in items]
    return torch.stack([image for image, _ in items]), torch.tensor(labels)


def load_model(name: str, weights: Path | None) -> nn.Module:
    """Return a torchvision classifier with the weights of the file, or torchvision's own."""
    if weights is None:
        return torchvision.models.get_model(name, weights="DEFAULT").eval()  # type: ignore[no-any-return]
    model: nn.Module = torchvision.models.get_model(name)
    is_safe = weights.suffix == ".safetensors"
    state = load_file(weights) if is_safe else torch.load(weights, weights_only=True)
    model.load_state_dict(state)
    return model.eval()


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
