"""torchvision's models by name, with torchvision's weights or those of a file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

Kind = Literal["classifier", "detector", "segmenter"]

REPORT_WEIGHTS = {"resnet50": "IMAGENET1K_V1"}
"""What the report used, where torchvision's default is another by now."""
_ZERO_EPS = tuple(
    f"{name}_resnet50_fpn" for name in ("retinanet", "fasterrcnn", "maskrcnn", "keypointrcnn")
)
"""Detectors whose pretrained norms torchvision gives an ε of 0."""
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_SHOWN_KEYS = 3


def kind_of(name: str) -> Kind:
    """Return what a torchvision model does.

    Raises:
        SystemExit: it is none of the three.
    """
    kinds: dict[Kind, Any] = {
        "classifier": torchvision.models,
        "detector": torchvision.models.detection,
        "segmenter": torchvision.models.segmentation,
    }
    for kind, module in kinds.items():
        if name in torchvision.models.list_models(module):
            return kind
    raise SystemExit(f"{name}: torchvision has no classifier, detector or segmenter of this name")


def default_weights(name: str) -> Any:
    """Return torchvision's weights that go with a name: the report's, else the default ones."""
    weights = torchvision.models.get_model_weights(name)
    return weights[REPORT_WEIGHTS.get(name, "DEFAULT")]


def preprocess_of(name: str) -> Callable[[Image.Image], Tensor]:
    """Return what turns an image into the model's input (3, H, W)."""
    return default_weights(name).transforms()  # type: ignore[no-any-return]


def load_model(name: str, weights: Path | None) -> nn.Module:
    """Return a model in eval mode, with the weights of the file or torchvision's own.

    Raises:
        SystemExit: the file holds other weights, or torchvision's cannot be loaded.
    """
    if weights is None:
        chosen = default_weights(name)
        try:
            return torchvision.models.get_model(name, weights=chosen).eval()  # type: ignore[no-any-return]
        except OSError as error:
            raise SystemExit(
                f"{name}: cannot download {chosen.url}: {error}; give --weights FILE"
            ) from error
    state = read_state(weights)
    model = _build(name, state)
    mismatch = _describe_mismatch(model.state_dict(), state)
    if mismatch:
        raise SystemExit(f"{weights}: not the weights of {name}: {mismatch}")
    model.load_state_dict(state, strict=False)  # but for num_batches_tracked all keys fit
    return model.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors or .pth file, or of a checkpoint around one.

    Raises:
        SystemExit: it cannot be read, or is something else.
    """
    try:
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SystemExit(f"{path}: cannot read weights: {what}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise SystemExit(f"{path}: expected a state dict; found a {type(state).__name__}")
    return state


def freeze_batchnorms(model: nn.Module, eps: float | None = None) -> nn.Module:
    """Put a `FrozenBatchNorm2d` with the same numbers in the place of each `BatchNorm2d`.

    Args:
        model: changed in place.
        eps: None: each norm's own.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, child.eps if eps is None else eps)
                state = child.state_dict()
                frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
                setattr(parent, name, frozen)
    return model


def _build(name: str, state: dict[str, Tensor]) -> nn.Module:
    """Return the untrained model that `state` is for, as torchvision builds a pretrained one."""
    options: dict[str, Any] = {"weights": None}
    kind = kind_of(name)
    if kind != "classifier":
        options["weights_backbone"] = None
    if kind == "segmenter" and any(key.startswith("aux_classifier.") for key in state):
        options["aux_loss"] = True
    if name in _WITH_AUXILIARY:
        has_auxiliary = any(key.lower().startswith("aux") for key in state)
        options |= {"aux_logits": has_auxiliary, "transform_input": True, "init_weights": False}
    model: nn.Module = torchvision.models.get_model(name, **options)
    was_frozen = not any(key.endswith(".num_batches_tracked") for key in state)
    if kind == "detector" and (was_frozen or name in _ZERO_EPS):
        freeze_batchnorms(model, eps=0.0 if name in _ZERO_EPS else None)
    return model


def _describe_mismatch(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Return the first keys that are missing, unexpected or of other shapes; "" if all fit."""
    mine = {key for key in expected if not key.endswith(".num_batches_tracked")}
    theirs = {key for key in found if not key.endswith(".num_batches_tracked")}
    lists = {
        "missing": [key for key in expected if key in mine - theirs],
        "unexpected": [key for key in found if key in theirs - mine],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected
            if key in mine & theirs and found[key].shape != expected[key].shape
        ],
    }
    parts = []
    for what, keys in lists.items():
        rest = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        if keys:
            parts.append(f"{what}: {', '.join(keys[:_SHOWN_KEYS])}{rest}")
    return "; ".join(parts)
