"""The models of the zoo: built from their packages' configurations, with random weights.

A name is a family and what that family's package calls the model: `timm:resnet18`. Each comes with
small inputs. Packages are imported where they are needed: `pip install -e ".[zoo]"` brings them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.capture import torchvision_detection

_CLASSES = 10
_VOCABULARY = 128
_SIDE = 128  # pixels, of what takes images of any size

NAMES = (
    *[
        f"timm:{name}"
        for name in (
            "resnet18", "resnet50d", "seresnet50", "resnest14d", "resnetv2_50",
            "resnetv2_50x1_bit", "regnety_002", "efficientnet_b0", "tf_efficientnetv2_b0",
            "mobilenetv3_small_100", "tf_mobilenetv3_small_100", "mobilenetv4_conv_small",
            "mobilenetv4_hybrid_medium", "convnext_atto", "vit_tiny_patch16_224",
            "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224",
            "swinv2_tiny_window8_256", "beit_base_patch16_224", "eva02_tiny_patch14_224",
            "maxvit_tiny_tf_224", "coatnet_0_224", "levit_128s", "efficientformerv2_s0",
            "fastvit_t8", "repvgg_a0", "mobileone_s0", "ghostnet_100", "hrnet_w18_small", "dla34",
            "dpn68", "cspdarknet53", "inception_v3", "nfnet_l0", "mobilevit_xxs",
            "efficientvit_b0", "mixer_s32_224", "rexnet_100",
        )
    ],
    *[f"yolo:{name}" for name in ("yolov8n", "yolov8n-seg", "yolo11n", "yolo12n", "rtdetr-l")],
    "smp:Unet/resnet34", "smp:FPN/mobilenet_v2", "smp:DeepLabV3Plus/resnet34",
    "smp:PAN/resnet18", "smp:Segformer/mit_b0",
    *[
        f"hf:{name}"
        for name in (
            "vit", "beit", "swinv2", "detr", "segformer", "resnet", "mobilenet_v2", "clip", "bert",
            "distilbert", "gpt2", "whisper_encoder", "wav2vec2",
        )
    ],
    *[
        f"tv:{name}"
        for name in (
            "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t", "mvit_v2_s", "s3d",
            "fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
        )
    ],
    "nn:transformer_encoder", "nn:crnn", "monai:basic_unet", "monai:segresnet",
)  # fmt: skip
"""All of the zoo."""


def floats(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in what a model returned."""
    return [each for each in torchvision_detection.tensors(output) if each.is_floating_point()]


def call(model: nn.Module, batch: Any) -> Any:
    """Return what `model` returns for a batch: one argument, or a dict of keywords."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def returned(model: nn.Module, batch: Any) -> list[Tensor]:
    """Return the floating-point tensors that `model` returns for a batch."""
    return floats(call(model, batch))


Compared = Callable[[nn.Module, Any], list[Tensor]]
"""What is compared of a model when it is called with a batch."""


@dataclass(frozen=True)
class Subject:
    """A model in eval mode, and what it is called with."""

    model: nn.Module
    batch: Callable[[int], Any]
    """Batch of so many samples: a tensor, a dict of keywords, or a list of images."""
    compared: Compared = returned


def build(name: str) -> Subject:
    """Return one of `NAMES`, or another of their families.

    Raises:
        ValueError: there is no such family.
    """
    family, _, own_name = name.partition(":")
    if family not in _FAMILIES:
        raise ValueError(f"{name!r}: names start with one of {', '.join(_FAMILIES)}, then a colon")
    torch.manual_seed(0)
    subject = _FAMILIES[family](own_name)
    make_nontrivial(subject.model, subject.batch(4))
    return subject


def make_nontrivial(model: nn.Module, batch: Any) -> None:
    """Leave nothing in `model` whose wrong use would not show in the outputs; set it to eval mode.

    Parameters that start as a constant become random: scales of 1, biases of 0, gates of whole
    branches that start near 0. Batch norms get statistics of about what `batch` brings them: with
    those of 0 and 1 deep networks without training overflow.
    """
    model.eval()
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.view(-1)[0]).all()):
                spread = 0.02 if parameter.dim() > 1 else 0.1
                parameter.add_(torch.empty_like(parameter).uniform_(-spread, spread))
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                hooks.callback(module.register_forward_pre_hook(_set_statistics).remove)
        call(model, batch)


def _set_statistics(norm: nn.Module, args: tuple[Tensor]) -> None:
    """Let a batch norm scale about to 1 what it is called with, and no channel by much more.

    1/σ of a channel that hardly varies, as without training many do, would make so much of rounding
    errors that nothing could be compared.
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    x, axes = args[0], [axis for axis in range(args[0].dim()) if axis != 1]
    norm.running_mean.uniform_(0, 0.5).mul_(x.mean(axes))
    norm.running_var.uniform_(0.5, 1.5).mul_(x.square().mean(axes) / 2 + x.square().mean() / 2)


def _images(model: nn.Module, side: int, channels: int = 3) -> Subject:
    return Subject(model, lambda number: torch.randn(number, channels, side, side))


def _timm(name: str) -> Subject:
    model = import_module("timm").create_model(name, num_classes=_CLASSES)
    known = model.pretrained_cfg
    return _images(model, known["input_size"][-1] if known.get("fixed_input_size") else _SIDE)


def _yolo(name: str) -> Subject:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    tasks = import_module("ultralytics.nn.tasks")
    kind = "RTDETRDetectionModel" if name.startswith("rtdetr") else "DetectionModel"
    kind = "SegmentationModel" if name.endswith("-seg") else kind
    model = getattr(tasks, kind)(f"{name}.yaml", ch=3, nc=_CLASSES, verbose=False)
    return Subject(model, lambda number: torch.rand(number, 3, 128, 128))


def _smp(name: str) -> Subject:
    architecture, _, encoder = name.partition("/")
    package = import_module("segmentation_models_pytorch")
    return _images(getattr(package, architecture)(encoder, encoder_weights=None, classes=5), 128)


def _torchvision(name: str) -> Subject:
    if name in torchvision_detection.model_names():
        return _detector(torchvision_detection.build(name))
    model: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    if name in ("s3d", "mvit_v2_s"):
        return Subject(model(), lambda number: torch.randn(number, 3, 16, 224, 224))
    return _images(model(num_classes=_CLASSES), 256 if name.startswith("swin_v2") else 224)


def _detector(model: nn.Module) -> Subject:
    def heads(version: nn.Module, batch: Any) -> list[Tensor]:
        boxes = torchvision_detection.run(model, batch).boxes
        seen = torchvision_detection.run(version, batch, boxes).heads
        return [tensor for head in seen.values() for tensor in head]

    return Subject(model, lambda number: list(torch.rand(number, 3, 192, 256)), heads)


def _nn(name: str) -> Subject:
    if name == "crnn":
        return Subject(CRNN(), lambda number: torch.randn(number, 1, 32, 96))
    if name == "transformer_encoder":
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        return Subject(nn.TransformerEncoder(layer, 2), lambda number: torch.randn(number, 16, 64))
    raise ValueError(f"nn:{name}: there are nn:crnn and nn:transformer_encoder")


class CRNN(nn.Module):
    """Text from pictures of lines: convolutions, a recurrent network along them, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 32, 64, 128)
        self.convolutions = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(ins, outs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outs),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
                for ins, outs in itertools.pairwise(channels)
            ]
        )
        self.recurrent = nn.LSTM(128 * 4, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(128, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of classes at each position; x: (N, 1, 32, W) -> (N, W // 8, 10)."""
        y = self.convolutions(x)
        y = y.permute(0, 3, 1, 2).flatten(2)  # (N, W // 8, 128 · 4)
        y, _ = self.recurrent(y)
        scores: Tensor = self.classifier(y)
        return scores


def _monai(name: str) -> Subject:
    nets = import_module("monai.networks.nets")
    if name == "basic_unet":
        model = nets.BasicUNet(spatial_dims=3, in_channels=1, out_channels=2, norm="batch")
    elif name == "segresnet":
        model = nets.SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8)
    else:
        raise ValueError(f"monai:{name}: there are monai:basic_unet and monai:segresnet")
    return Subject(model, lambda number: torch.randn(number, 1, 32, 32, 32))


_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_SMALL_IMAGES = {"image_size": 64, "num_labels": _CLASSES}
_HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _SMALL | _SMALL_IMAGES),
    "beit": (
        "BeitForImageClassification",
        "BeitConfig",
        _SMALL | _SMALL_IMAGES | {"use_relative_position_bias": True, "out_indices": [1]},
    ),
    "swinv2": (
        "Swinv2ForImageClassification",
        "Swinv2Config",
        _SMALL_IMAGES | {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 64, "num_labels": _CLASSES},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "embedding_size": 16},
    ),
    "mobilenet_v2": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.35, **_SMALL_IMAGES},
    ),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        {"vocab_size": _VOCABULARY, **_SMALL},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": _VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": _VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            "vocab_size": 32,
            **_SMALL,
            "conv_dim": (32, 32, 32),
            "conv_stride": (5, 4, 4),
            "conv_kernel": (10, 8, 8),
            "num_conv_pos_embeddings": 16,
        },
    ),
}
"""By name: the model, its configuration, and what of that is smaller than usual."""
_TEXTS = ("bert", "distilbert", "gpt2")


def _hugging_face(name: str) -> Subject:
    package = import_module("transformers")
    if name in _HUGGING_FACE:
        kind, config, options = _HUGGING_FACE[name]
        model = getattr(package, kind)(getattr(package, config)(**options))
    elif name == "detr":
        backbone = package.ResNetConfig(
            hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
        model = package.DetrForObjectDetection(
            package.DetrConfig(
                use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                backbone_config=backbone, d_model=64, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
                decoder_ffn_dim=128, num_queries=10, num_labels=_CLASSES,
            )
        )  # fmt: skip
    elif name == "clip":
        text = {"vocab_size": _VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2}
        model = package.CLIPModel(
            package.CLIPConfig(
                text_config=_SMALL | text,
                vision_config=_SMALL | {"image_size": 64, "patch_size": 16},
                projection_dim=32,
            )
        )
    elif name == "whisper_encoder":
        config = package.WhisperConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,
            decoder_layers=1, decoder_attention_heads=4, num_mel_bins=20, max_source_positions=50,
        )  # fmt: skip
        model = package.WhisperModel(config).encoder
    else:
        known = ", ".join([*_HUGGING_FACE, "detr", "clip", "whisper_encoder"])
        raise ValueError(f"hf:{name}: there are {known}")
    return Subject(model, lambda number: _hugging_face_batch(name, number))


def _hugging_face_batch(name: str, number: int) -> dict[str, Tensor]:
    tokens = torch.randint(3, _VOCABULARY, (number, 12))
    texts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    pixels = {"pixel_values": torch.randn(number, 3, 64, 64)}
    if name in _TEXTS:
        return texts
    if name == "clip":
        tokens[:, -1] = 2  # the end, whose features stand for the text
        return texts | pixels
    if name == "whisper_encoder":
        return {"input_features": torch.randn(number, 20, 100)}
    if name == "wav2vec2":
        return {"input_values": torch.randn(number, 4000)}
    return pixels


_FAMILIES: dict[str, Callable[[str], Subject]] = {
    "timm": _timm,
    "yolo": _yolo,
    "smp": _smp,
    "hf": _hugging_face,
    "tv": _torchvision,
    "nn": _nn,
    "monai": _monai,
}
