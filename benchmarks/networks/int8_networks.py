"""The networks that the int8 benchmarks run, and images for them.

Beside torchvision's there are bodies of YOLOv8n and of MiniLM, and the ResNet-20 for CIFAR-10. Each
takes one tensor of images, (N, 3, H, W), and returns tensors. Without a weights file, weights
and statistics of batch norms are random. Statistics of real batches would not be better: a random
network makes nearly the same of all images, and batch norms that enlarge what differs enlarge the
noise of 8 bits likewise (DeepLab: 1 dB left in every contestant, instead of 28).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.capture.torchvision_models import randomize
from benchmarks.data.datasets import ImageNet
from benchmarks.data.pretrained import Kind, freeze_batchnorms, kind_of, load_model
from benchmarks.int8.overhead import build as build_random
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.networks.minilm_body import TOKENS, MiniLmBody
from benchmarks.networks.yolo_body import YoloBody
from benchmarks.peers.torch_arrays import tensors
from benchmarks.ranges import cifar10
from benchmarks.ranges.imagenet import PREPROCESS

YOLO_BODY = "yolov8n_body"
"""No network of torchvision: `benchmarks.networks.yolo_body`."""
MINILM_BODY = "minilm_l6_body"
"""Nor is this: `benchmarks.networks.minilm_body`."""
NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "squeezenet1_1",
    "efficientnet_b0",
    YOLO_BODY,
    "deeplabv3_resnet50",
    "vit_b_16",
    MINILM_BODY,
    "retinanet_resnet50_fpn",
)
CIFAR = "resnet20"
"""For images of 32²: `benchmarks.networks.cifar_resnet`."""
LINEAR_LAYERS = "linear_layers"
"""Three linear layers with ReLUs between them, of images of 32²."""
CALIBRATION_IMAGES = 32
_SIZES = {"inception_v3": 299, CIFAR: 32, LINEAR_LAYERS: 32, MINILM_BODY: TOKENS}
_SUFFIXES = (".safetensors", ".pth")
_COARSE = 8  # how many pixels of an image make one of the noise that it is interpolated from


@dataclass(frozen=True)
class Network:
    """What is run at which size."""

    name: str
    batch: int
    size: int
    """Height and width of the images."""
    weights: Path | None = None
    photos: Path | None = None
    """Its images, in ImageNet's folder or CIFAR-10's npz; None: noise."""

    @property
    def kind(self) -> Kind | None:
        """Return what it does; None: it is a body without a head."""
        if self.name in (CIFAR, LINEAR_LAYERS, MINILM_BODY):
            return "classifier"
        return None if self.name == YOLO_BODY else kind_of(self.name)

    @property
    def num_compared(self) -> int:
        """Return how many of its outputs, from the first, have one place for each value.

        Those of a detector are the scores and the boxes of all anchors; behind them come the
        detections, in an order that any rounding changes. A body has three maps.
        """
        return {"detector": 2, None: 3}.get(self.kind, 1)

    def identity(self) -> dict[str, Any]:
        """Return what a figure of this network depends on."""
        digest = self.weights and hashlib.sha256(self.weights.read_bytes()).hexdigest()[:12]
        found = {"name": self.name, "batch": self.batch, "size": self.size, "weights": digest}
        return found if self.photos is None else {**found, "photos": self.photos.name}


def network(name: str, batch: int, weights_folder: Path | None = None) -> Network:
    """Return a network at the size of the table: `batch` is that of a classifier.

    Its weights are `weights_folder`/name.safetensors or .pth, where there is such a file; those of
    bodies are random.
    """
    weights = None
    if weights_folder is not None and name not in (YOLO_BODY, MINILM_BODY):
        files = [weights_folder / f"{name}{suffix}" for suffix in _SUFFIXES]
        weights = next((file for file in files if file.exists()), None)
    wanted = Network(name, 1, 256, weights)
    if wanted.kind == "classifier":
        return Network(name, batch, _SIZES.get(name, 224), weights)
    return wanted


def build(wanted: Network) -> nn.Module:
    """Return the float network in eval mode, from a tensor of images to tensors."""
    if wanted.kind is None:
        torch.manual_seed(0)
        return randomize(YoloBody()).eval()
    if wanted.name == MINILM_BODY:
        torch.manual_seed(0)
        return MiniLmBody().eval()
    if wanted.name == CIFAR:
        torch.manual_seed(0)
        trained = wanted.weights and cifar10.load_model(wanted.weights)
        return trained or randomize(CifarResNet(20)).eval()
    if wanted.name == LINEAR_LAYERS:
        torch.manual_seed(0)
        return linear_layers(3 * wanted.size**2).eval()
    if wanted.weights is not None:
        model = load_model(wanted.name, wanted.weights)
    else:
        model = randomize(build_random(wanted.name, wanted.size)).eval()
        if wanted.kind == "detector":
            freeze_batchnorms(model)  # as those of trained ones are
            _detect_something(model)
    if wanted.kind == "segmenter":
        return Segmenter(model)
    if wanted.kind == "classifier":
        return model
    transform: Any = model.transform
    transform.min_size, transform.max_size = (wanted.size,), wanted.size
    return Detector(model)


def linear_layers(inputs: int) -> nn.Module:
    """Return a network of (N, …), flattened to `inputs` values, to 10 classes."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, 256), nn.ReLU()),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _detect_something(detector: nn.Module) -> None:
    """Let scores begin at one half, not at 1 %, which is below what is kept."""
    for name, module in detector.named_modules():
        if name.endswith("cls_logits") and isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def images(wanted: Network, count: int, *, seed: int) -> Tensor:
    """Return photos, or smooth noise, as images are smooth: normalized, for a detector from 0 to 1.

    Raises:
        SystemExit: there are no photos where the network says.
    """
    generator = torch.Generator().manual_seed(seed)
    if wanted.photos is not None:
        return _load(wanted.photos, count, generator)
    side = -(-wanted.size // _COARSE)
    coarse = torch.randn(count, 3, side, side, generator=generator)
    smooth = F.interpolate(coarse, (wanted.size, wanted.size), mode="bilinear")
    return smooth.sigmoid() if wanted.kind == "detector" else smooth


def _load(photos: Path, count: int, generator: torch.Generator) -> Tensor:
    if photos.suffix == ".npz":
        with np.load(photos) as data:
            found = data["test_x"]
        return cifar10.normalize(found[torch.randperm(len(found), generator=generator)[:count]])
    folder = ImageNet(photos)
    order = torch.randperm(len(folder), generator=generator)[:count]
    return torch.stack([PREPROCESS(folder[int(index)][0]) for index in order])


class Segmenter(nn.Module):
    """A segmentation network without its dict: images to class scores (N, classes, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        return self.model(x)["out"]  # type: ignore[no-any-return]


class Detector(nn.Module):
    """A detector that also returns what its head says of all anchors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _parent(model).head = Tap(_parent(model).head)
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return scores and boxes of all anchors, then boxes, scores, labels of each image."""
        detections = self.model(list(x))
        found = [each[key] for each in detections for key in ("boxes", "scores", "labels")]
        return [*_parent(self.model).head.take_outputs(), *found]


def _parent(detector: Any) -> Any:
    """Return the module that has the head."""
    return detector if hasattr(detector, "head") else detector.rpn


class Tap(nn.Module):
    """A head that keeps its last outputs, one tensor each over all levels of the pyramid."""

    outputs: Sequence[Tensor] = ()

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor]) -> Any:
        """Return what the head returns."""
        result = self.head(features)
        outputs = result.values() if isinstance(result, dict) else result
        flat = [[level.flatten(1) for level in tensors(each)] for each in list(outputs)[:2]]
        self.outputs = [torch.cat(levels, dim=1) for levels in flat]
        return result

    def take_outputs(self) -> Sequence[Tensor]:
        """Return the last outputs, and keep them no longer."""
        outputs, self.outputs = self.outputs, ()
        return outputs
