"""A small classifier, detector and segmenter of torchvision's classes, trained on drawn shapes.

All three have the body of a `ResNet` of one block a stage. The classifier's, trained, is where the
other two start. As in torchvision's pretrained detectors, the detector's batch norms are frozen,
with the statistics of training in them. Pictures and weights are kept in a cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.data.drawn_shapes import SCENE_SHAPES, SHAPES, write_coco, write_imagenet, write_voc
from benchmarks.data.pretrained import freeze_batchnorms
from benchmarks.networks.small_training import (
    MEAN,
    STD,
    Plan,
    classifier_losses,
    detector_losses,
    fit,
    segmenter_losses,
)

PLANS = {
    "small_resnet": Plan(train=1500, val=1000, epochs=6, batch_size=16, learning_rate=1e-3),
    "small_retinanet": Plan(train=1000, val=640, epochs=7, batch_size=8, learning_rate=1e-3),
    "small_deeplabv3": Plan(train=500, val=300, epochs=10, batch_size=8, learning_rate=2e-3),
}


def data_folder(name: str, cache: Path) -> Path:
    """Return the folder of a small model's pictures; draw them if they are not there."""
    plan = PLANS[name]
    format_name, write = {
        "small_resnet": ("imagenet", write_imagenet),
        "small_retinanet": ("coco", write_coco),
        "small_deeplabv3": ("voc", write_voc),
    }[name]
    folder = cache / f"drawn_{format_name}_{plan.train}_{plan.val}"
    if not folder.exists():
        write(folder, plan.train, plan.val)
    return folder


def load_small(name: str, cache: Path) -> nn.Module:
    """Return a trained small model, in eval mode, from the cache if it is there."""
    path = weights_file(name, cache)
    if path.exists():
        model = build(name)
        if name == "small_retinanet":
            model = freeze_batchnorms(model)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _train(name, cache)
    unfinished = path.with_suffix(".unfinished")
    torch.save(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model.eval()


def weights_file(name: str, cache: Path) -> Path:
    """Return where the trained weights of a small model are kept."""
    plans = f"{PLANS['small_resnet']} {PLANS[name]}"
    return cache / f"{name}_{hashlib.sha256(plans.encode()).hexdigest()[:8]}.pt"


def build(name: str) -> nn.Module:
    """Return an untrained small model, its norms `BatchNorm2d`."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "small_resnet": _build_classifier,
        "small_retinanet": _build_detector,
        "small_deeplabv3": _build_segmenter,
    }
    return builders[name]()


def _build_classifier() -> ResNet:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(SHAPES))


def _build_detector() -> RetinaNet:
    returned = {"layer2": "0", "layer3": "1", "layer4": "2"}  # strides 8, 16, 32
    backbone = BackboneWithFPN(
        _build_classifier(), returned, [128, 256, 512], 64, LastLevelP6P7(64, 64)
    )
    octave = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = tuple(tuple(side * part for part in octave) for side in (12, 24, 48, 80, 110))
    anchors = AnchorGenerator(sizes, ((1.0,),) * 5)
    return RetinaNet(
        backbone,
        num_classes=len(SCENE_SHAPES) + 1,  # 0 is no class, as in torchvision
        min_size=128,
        max_size=160,
        anchor_generator=anchors,
        image_mean=MEAN,
        image_std=STD,
    )


def _build_segmenter() -> DeepLabV3:
    backbone = IntermediateLayerGetter(_build_classifier(), {"layer2": "out"})  # stride 8
    head = DeepLabHead(128, len(SCENE_SHAPES) + 1, atrous_rates=(2, 4, 6))
    return DeepLabV3(backbone, head)


def _train(name: str, cache: Path) -> nn.Module:
    model, plan, folder = build(name), PLANS[name], data_folder(name, cache)
    if name == "small_resnet":
        fit(model, classifier_losses(model, folder, plan), plan)
        return model
    body = load_small("small_resnet", cache).state_dict()
    if name == "small_retinanet":
        _load_known(model.get_submodule("backbone.body"), body)
        fit(model, detector_losses(model, folder, plan), plan)
        return freeze_batchnorms(model)
    _load_known(model.get_submodule("backbone"), body)
    fit(model, segmenter_losses(model, folder, plan), plan)
    return model


def _load_known(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict({key: state[key] for key in model.state_dict()})
