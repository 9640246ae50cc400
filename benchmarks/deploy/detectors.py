"""Torchvision's detectors, each as one ONNX file, in onnxruntime beside the simulation.

    python -m benchmarks.deploy.detectors [--match "retinanet*"] [--images 1] [--target onnxruntime]

Weights are random, images small and noise; batch norms are set to normalize these, and classifiers
scaled such that scores spread. Each detector is quantized at 8/8 and exported whole. Of a detector
that was never trained many boxes score alike, and one value that is rounded the other way, since
two runtimes add in another order, changes which of them is best. So all scales are rounded to
powers of two, and biases to multiples of one: then sums are exact in float32, in any order, and
what differs is of the file. Columns:

* whether PyTorch's own exporter takes the float model, and `fxquant.export_onnx` the quantized one;
* megabytes of both files; convolutions on integers, of all, in the graph that onnxruntime makes;
* whether the sizes of images are free in the file;
* "same": of the simulation's detections those that onnxruntime finds too, optimizations off: same
  label, IoU above 0.9; greatest differences of boxes, in pixels, and scores, of these; and that of
  all scores in descending order: where it is next to nothing, what is missing is a tie;
* "noise": the same of the simulation and itself on an image that differs by 1e-6.

Needs `pip install onnx onnxscript onnxruntime`.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, box_iou
from tqdm import tqdm

import fxquant
from benchmarks.capture.torchvision_detection import build
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.quantized_layer import QuantizedLayer

_SPREAD = 3.0  # standard deviation of the logits
_BIAS_STEP = 2.0**-6
_CLASSIFIERS = ("cls_logits", "cls_score", "classification_head.module_list")
_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv")

Detections = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Agreement:
    """How two lists of detections agree."""

    matched: int
    number: int
    box: float
    """Greatest difference of the coordinates of a matched box, in pixels."""
    score: float
    ranked: float
    """Greatest difference of the scores in descending order; infinite: of another number."""

    def __str__(self) -> str:
        return f"{self.matched}/{self.number}, {self.box:.2g}, {self.score:.1g}, {self.ranked:.1g}"


@torch.no_grad()
def wake(model: nn.Module, images: list[Tensor]) -> None:
    """Let what a random detector computes vary: batch norms normalize, and scores spread.

    Changes the model in place, layer by layer, while it runs once.
    """
    done: set[nn.Module] = set()

    def normalize(module: Any, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        if module not in done and x.shape[2] * x.shape[3] > 1:
            done.add(module)
            module.running_mean.copy_(x.mean((0, 2, 3)))
            module.running_var.copy_(x.var((0, 2, 3)).clamp(min=1e-12))

    def spread(module: Any, _: Any, output: Tensor) -> Tensor | None:
        if module in done:
            return None
        done.add(module)
        factor = _SPREAD / output.std()
        module.weight.mul_(factor)
        module.bias.mul_(factor)
        return output * factor

    handles = [
        module.register_forward_pre_hook(normalize)
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))
    ]
    handles += [
        module.register_forward_hook(spread)
        for name, module in model.named_modules()
        if any(each in name for each in _CLASSIFIERS)
        and isinstance(module, (nn.Conv2d, nn.Linear))
        and module.bias is not None
    ]
    model(images)
    for handle in handles:
        handle.remove()


def make_exact(quantized: nn.Module) -> None:
    """Round scales to powers of two, and biases to multiples of one, in place."""
    for module in quantized.modules():
        if isinstance(module, FakeQuantize):
            module.scale.copy_(torch.exp2(module.scale.log2().round()))
        if isinstance(module, QuantizedLayer):
            module.weight_scale.copy_(torch.exp2(module.weight_scale.log2().round()))
            module.set_bias((module.bias_values() / _BIAS_STEP).round() * _BIAS_STEP)


def compare(expected: Detections, actual: Detections) -> Agreement:
    """Match detections: same label, IoU above 0.9, each at most once."""
    matched, number, box, score, ranked = 0, 0, 0.0, 0.0, 0.0
    for theirs, mine in zip(expected, actual, strict=True):
        number += len(theirs["scores"])
        ranked = max(ranked, _difference(theirs["scores"], mine["scores"]))
        overlap = box_iou(theirs["boxes"].double(), mine["boxes"].double())
        overlap[theirs["labels"][:, None] != mine["labels"][None]] = 0
        for row in theirs["scores"].argsort(descending=True).tolist():
            if overlap.shape[1] == 0 or overlap[row].max() <= 0.9:
                continue
            column = int(overlap[row].argmax())
            overlap[:, column] = 0
            matched += 1
            box = max(box, float((theirs["boxes"][row] - mine["boxes"][column]).abs().max()))
            score = max(score, float((theirs["scores"][row] - mine["scores"][column]).abs()))
    return Agreement(matched, number, box, score, ranked)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the greatest difference of values in order."""
    if expected.shape != actual.shape:
        return math.inf
    return float((expected.sort().values - actual.sort().values).abs().max())


def run_file(path: Path, images: list[Tensor], optimized: Path | None = None) -> Detections:
    """Return what onnxruntime finds, its optimizations off, or on, then with the graph it makes."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    feeds = {f"images_{number}": image.numpy() for number, image in enumerate(images)}
    results = dict(zip(names, session.run(None, feeds), strict=True))
    return [
        {
            key: torch.from_numpy(results[f"output_{number}_{key}"])
            for key in ("boxes", "labels", "scores")
        }
        for number in range(len(images))
    ]


def float_megabytes(model: nn.Module, images: list[Tensor], path: Path) -> float:
    """Return the size of what PyTorch's exporter by tracing writes of the float model."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(path), dynamo=False, opset_version=18)
    return path.stat().st_size / 1e6


def measure(name: str, num_images: int, target: str) -> list[object]:
    """Return the table's row for one detector."""
    onnx: Any = import_module("onnx")
    model = build(name)
    images = [torch.rand(3, 192, 256) for _ in range(num_images)]
    wake(model, images)
    quantized = fxquant.quantize(
        model, [images], fxquant.Recipe.aciq(target=target), progress=False
    )
    make_exact(quantized)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "ours.onnx"
        try:
            size = f"{float_megabytes(model, images, Path(folder) / 'float.onnx'):.1f}"
        except Exception as error:  # whatever the exporter says
            size = type(error).__name__
        fxquant.export_onnx(quantized, path, images)
        expected = quantized(images)
        nudged = [image * (1 + 1e-6 * (torch.rand_like(image) - 0.5)) for image in images]
        agreement = compare(expected, run_file(path, images))
        own = compare(expected, quantized(nudged))
        run_file(path, images, Path(folder) / "optimized.onnx")
        nodes = onnx.load(Path(folder) / "optimized.onnx").graph.node
        kernels = Counter(node.op_type for node in nodes if node.op_type in _CONVOLUTIONS)
        lengths = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        is_free = bool(lengths[1].dim_param)
        megabytes = f"{path.stat().st_size / 1e6:.1f}"
    share = f"{kernels['QLinearConv']}/{kernels.total()}"
    return [name, size, megabytes, share, "free" if is_free else "fixed", agreement, own]


def main() -> None:
    """Print the table; exit with an error if a detector failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--match", default="*", help="glob on model names")
    parser.add_argument("--images", type=int, default=1, help="how many a batch has")
    parser.add_argument("--target", default="onnxruntime", help="that the recipe is for")
    options = parser.parse_args()
    names = torchvision.models.list_models(torchvision.models.detection)
    rows, failed = [], []
    for name in tqdm(fnmatch.filter(names, options.match), disable=None):
        try:
            rows.append(measure(name, options.images, options.target))
        except Exception as error:
            failed.append([name, f"{type(error).__name__}: {str(error).splitlines()[0]}"])
        gc.collect()
    columns = ["model", "float MB", "MB", "int8 convs", "sizes"]
    columns += ["same, px, score, ranked", "noise, px, score, ranked"]
    print(tabulate(rows, columns, disable_numparse=True))
    if failed:
        print(tabulate(failed, ["failed", "why"]))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
