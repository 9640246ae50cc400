"""Quantize torchvision's detection and optical-flow models, random weights, at 8/8.

    python -m benchmarks.capture.torchvision_detection [--match "retinanet*"] [--regions]

None of them can be traced whole: each becomes regions. Each goes through prepare, calibration on
one small image, and convert. The first table lists

* regions, and layers: those with 8-bit weights and 8-bit inputs, of all there are;
* batch norms that are not folded. Backbones whose trained checkpoints hold `FrozenBatchNorm2d`
  get them here, too;
* the share of the multiply-adds in quantized layers (`torch.utils.flop_counter`, which knows
  convolutions and matrix products);
* the SQNR of what the heads return against the float model's on the same image: scores, then
  boxes, then centers. Heads on regions of interest look at the float model's boxes in both models:
  their own differ. Of optical flow the last flow is compared.

The second table breaks the multiply-adds of RetinaNet down; the FPN is a part of the backbone.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

import fxquant
from benchmarks.capture.torchvision_models import randomize
from fxquant.capture.naming import find_regions
from fxquant.capture.region import TRACED
from fxquant.graph.operations import is_batchnorm
from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.modules.layers import layer_type
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr

_SMALL = {"min_size": 192, "max_size": 256}
_FEW_BOXES = {
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 10,
    "box_score_thresh": 0.0,
}
_OUTPUTS = ("cls_logits", "bbox_regression", "bbox_ctrness")
_ROI_PARTS = ("box", "mask", "keypoint")
_RETINANET_PARTS = (
    "backbone",
    "backbone.fpn",
    "head.classification_head",
    "head.regression_head",
)


@dataclass(frozen=True)
class Measured:
    """What the tables say of one model."""

    row: list[object]
    parts: list[list[object]]
    """Rows of the second table."""
    report: fxquant.Report


def model_names() -> list[str]:
    """Return the names of all detection and optical-flow models."""
    modules = (torchvision.models.detection, torchvision.models.optical_flow)
    return [name for module in modules for name in torchvision.models.list_models(module)]


def build(name: str) -> nn.Module:
    """Return the model with random weights, for small images; a detector that finds something."""
    torch.manual_seed(0)
    if name.startswith("raft"):
        return randomize(torchvision.models.get_model(name, weights=None)).eval()
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if "rcnn" in name:
        options |= _SMALL | _FEW_BOXES
    elif not name.startswith("ssd"):
        options |= _SMALL
    model = randomize(torchvision.models.get_model(name, **options))
    if not name.endswith("_v2") and not name.startswith("ssd"):
        freeze_batchnorms(model)
    for path, module in model.named_modules():
        # RetinaNet and FCOS start from a score of 1 %: next to that constant of -4.6 the noise of
        # the scores would look 30 dB smaller, and nothing would be detected.
        if path.endswith("cls_logits") and isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model.eval()


def freeze_batchnorms(model: nn.Module) -> None:
    """Put `FrozenBatchNorm2d` of the same statistics in the place of every `BatchNorm2d`."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen)
        else:
            freeze_batchnorms(child)


def example(name: str) -> Any:
    """Return one batch: a list of one image, or two frames, the second moved by two pixels."""
    if not name.startswith("raft"):
        return [torch.rand(3, 192, 256)]
    frame = torch.rand(1, 3, 128, 160) * 2 - 1
    return {"image1": frame, "image2": frame.roll(2, dims=3), "num_flow_updates": 3}


def call(model: nn.Module, batch: Any) -> tuple[Any, dict[str, int]]:
    """Return what `model` returns for a batch as `example` makes it, and the multiply-adds.

    These are of each module and all in it, by name; the model's own is "".
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(**batch) if isinstance(batch, dict) else model(batch)
    root = type(model).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    return output, counts


def quantized_and_all(model: nn.Module, counts: dict[str, int], part: str = "") -> tuple[int, int]:
    """Return the multiply-adds in quantized layers and all of them, in one part of the model.

    Args:
        model: the converted one.
        counts: from `call`.
        part: a submodule. Of one inside a region, whose forward is never called, layers are added.
    """
    layers = {
        name: counts.get(name, 0)
        for name, module in model.named_modules()
        if layer_type(module) is not None and _is_inside(_plain(name), part)
    }
    quantized = sum(
        count
        for name, count in layers.items()
        if isinstance(model.get_submodule(name), QuantizedLayer)
    )
    return quantized, counts.get(part, sum(layers.values()))


def _is_inside(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def _plain(name: str) -> str:
    """Return the name that a module inside a region has in the float model."""
    return ".".join(part for part in name.split(".") if part != TRACED)


@dataclass(frozen=True)
class Run:
    """One call of a model, and what its heads returned."""

    output: Any
    multiply_adds: dict[str, int]
    heads: dict[str, list[Tensor]]
    boxes: dict[str, Any]
    """What the model itself looked at with each head on regions of interest."""


def run(model: nn.Module, batch: Any, boxes: dict[str, Any] | None = None) -> Run:
    """Call a float or a converted model, and return what came of it.

    Args:
        model: one of `model_names`.
        batch: as `example` makes it.
        boxes: of another run; `heads` holds what the heads make of these instead of its own.
    """
    if isinstance(batch, dict):
        output, counts = call(model, batch)
        return Run(output, counts, {"flow": [output[-1]]}, {})
    name = "rpn" if hasattr(model, "rpn") else "head"
    head = model.get_submodule("rpn.head" if name == "rpn" else "head")
    roi: Any = getattr(model, "roi_heads", None)
    pools: dict[str, nn.Module] = {
        part: getattr(roi, f"{part}_roi_pool")
        for part in _ROI_PARTS
        if getattr(roi, f"{part}_roi_pool", None) is not None
    }
    seen: dict[str, Any] = {}

    def keep_output(_module: nn.Module, _args: Any, output: Any) -> None:
        seen[name] = output

    def keep_arguments(part: str) -> Any:
        return lambda _module, args: seen.update({part: args})

    handles = [head.register_forward_hook(keep_output)]
    handles += [
        pool.register_forward_pre_hook(keep_arguments(part)) for part, pool in pools.items()
    ]
    try:
        output, counts = call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    levels = seen[name]
    if isinstance(levels, dict):
        levels = [levels[key] for key in _OUTPUTS if key in levels]
    heads, own = {name: [_joined(each) for each in levels]}, {}
    for part, pool in pools.items():
        features, own[part], shapes = seen[part]
        head, predictor = getattr(roi, f"{part}_head"), getattr(roi, f"{part}_predictor")
        with torch.no_grad():
            predicted = predictor(head(pool(features, (boxes or own)[part], shapes)))
        heads[part] = list(tensors(predicted))
    return Run(output, counts, heads, own)


def _joined(levels: Any) -> Tensor:
    """Return the outputs on all levels of a pyramid as one row."""
    return torch.cat([each.flatten() for each in tensors(levels)])


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def measure(name: str, model: nn.Module, batch: Any) -> Measured:
    """Quantize one model, from `build`, on a batch from `example`, and measure it.

    Raises:
        ValueError: the output is not finite, or nothing was detected.
    """
    start = time.perf_counter()
    prepared = fxquant.prepare(model, fxquant.Recipe.aciq())
    fxquant.calibrate(prepared, [batch], progress=False)
    quantized = fxquant.convert(prepared)
    seconds = time.perf_counter() - start
    expected = run(model, batch)
    actual = run(quantized, batch, expected.boxes)
    if not all(torch.isfinite(each).all() for each in tensors(actual.output)):
        raise ValueError("the output is not finite")
    if not all(each.numel() for each in tensors(actual.output)):
        raise ValueError("nothing was detected")
    losses = [
        " ".join([head, *[f"{sqnr(*pair):.1f}" for pair in zip(outputs, others, strict=True)]])
        for (head, outputs), others in zip(
            expected.heads.items(), actual.heads.values(), strict=True
        )
    ]
    report = fxquant.report(quantized)
    inside, everything = quantized_and_all(quantized, actual.multiply_adds)
    row = [
        name,
        len(report.regions),
        "{}/{}".format(*count_layers(quantized, report)),
        count_batchnorms(quantized),
        f"{everything / 1e9:.1f}",
        _percent(inside, everything),
        ", ".join(losses),
        f"{seconds:.1f}",
    ]
    parts: list[list[object]] = []
    for part in _RETINANET_PARTS if name.startswith("retinanet") else ():
        inside, everything = quantized_and_all(quantized, actual.multiply_adds, part)
        parts.append([name, part, f"{everything / 1e9:.2f}", _percent(inside, everything)])
    return Measured(row, parts, report)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def count_layers(quantized: nn.Module, report: fxquant.Report) -> tuple[int, int]:
    """Return the number of layers with quantized weights and inputs, and of all layers."""
    names = {row.name for row in report.rows if row.weights and row.inputs}
    return len(names), sum(layer_type(module) is not None for module in quantized.modules())


def count_batchnorms(quantized: nn.Module) -> int:
    """Return the number of batch norms that are still called, by graphs or by Python."""
    regions = find_regions(quantized)
    in_graphs = sum(
        bool(is_batchnorm(gm, node)) for gm in regions.values() for node in gm.graph.nodes
    )
    inside = {id(module) for gm in regions.values() for module in gm.modules()}
    in_python = [
        module
        for module in quantized.modules()
        if is_batchnorm_module(module) and id(module) not in inside
    ]
    return in_graphs + len(in_python)


def main() -> None:
    """Print the tables; exit with an error if a model failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--match", default="*", help="glob on model names")
    parser.add_argument("--regions", action="store_true", help="list each model's regions")
    options = parser.parse_args()
    measured, failed = [], []
    for name in tqdm(fnmatch.filter(model_names(), options.match), disable=None):
        try:
            measured.append(measure(name, build(name), example(name)))
        except Exception as error:
            failed.append([name, f"{type(error).__name__}: {str(error).splitlines()[0]}"])
        gc.collect()
    columns = ["model", "regions", "layers 8/8", "batch norms left", "G multiply-adds"]
    columns += ["quantized %", "heads dB", "seconds"]
    print(tabulate([each.row for each in measured], columns, disable_numparse=True))
    parts = [row for each in measured for row in each.parts]
    if parts:
        print()
        columns = ["model", "part", "G multiply-adds", "quantized %"]
        print(tabulate(parts, columns, disable_numparse=True))
    if options.regions:
        for each in measured:
            regions = [list(vars(region).values()) for region in each.report.regions]
            print(f"\n{each.row[0]}\n")
            print(tabulate(regions, ["region", "kind", "nodes", "layers", "quantized"]))
    if failed:
        print(tabulate(failed, ["failed", "why"]))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
