"""Digest what 12 recipes make of 4 networks, to see that a change of the code changes nothing.

    python -m benchmarks.digests --out before.json [--data FOLDER]
    python -m benchmarks.digests --compare before.json

Of each pair, the SHA-256 of all that the quantized model's state dict holds (integers, scales,
zero-points, biases), of its outputs, and of the lowered model's outputs, or the first line of why
`lower` refused. An error is kept as its class and message. The digests are of one machine and one
version of PyTorch; everything is seeded and runs in one thread, so that two runs give the same.

`--data` is a folder with cifar10.npz, cifar10_resnet20.safetensors, imagenet/val/*/*.JPEG and
imagenet_squeezenet1_1.safetensors; without it these two networks have drawn weights and inputs.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import fxquant
from benchmarks.digits import DigitsNet, load_data
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.ranges.cifar10 import load_model, normalize
from fxquant import Recipe, TensorSpec

BATCH_SIZE, NUM_BATCHES = 16, 4
NUM_IMAGES = BATCH_SIZE * (NUM_BATCHES + 1)
"""The last batch is not calibrated on: the outputs are its."""
SIDE = 64
"""Of SqueezeNet's images, in pixels."""
SHOWN = 4
"""Differences of one pair in the table."""

_LEARNED: dict[str, Any] = {"steps": 50, "samples": BATCH_SIZE * NUM_BATCHES}
RECIPES = {
    "8/8 minmax": Recipe.minmax(),
    "8/8 aciq": Recipe.aciq(),
    "4/4 aciq": Recipe.aciq(weight_bits=4, activation_bits=4),
    "adaround": Recipe.adaround(**_LEARNED),
    "gram": Recipe.adaround(method="gram", **_LEARNED),
    "adaquant": Recipe.adaround(method="adaquant", **_LEARNED),
    "blocks": Recipe.adaround(blocks=True, **_LEARNED),
    "mixed": Recipe.mixed(average_bits=5, weight_bits=(2, 4, 8), **_LEARNED),
    "equalization": Recipe(weights=TensorSpec(symmetric=True), equalization=True),
    "batch-norm tuning": Recipe.minmax(weight_bits=4, batchnorm_tuning=True),
    "per-channel activations": Recipe.aciq(
        activation_bits=4, activation_per_channel=True, activation_bit_allocation=True
    ),
    "dynamic": Recipe.aciq(activation_dynamic=True),
}

Record = dict[str, str]
"""What was digested → its digest; also "refused" and "error" → the words."""


@dataclass(frozen=True)
class Subject:
    """A float network, and batches: the last one is for the outputs, the others to calibrate."""

    model: nn.Module
    batches: Sequence[Any]


class _Backbone(nn.Module):
    """Two levels of features, the coarse one added to the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = _conv_bn(3, 16), _conv_bn(16, 16)
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.down = _conv_bn(16, 24, stride=2)
        self.fine, self.coarse = nn.Conv2d(16, 16, 1), nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features (N, 16, H, W) and (N, 16, H/2, W/2) of images (N, 3, H, W)."""
        x = self.stem(x)
        x = F.relu(self.norm(self.conv(self.inner(x))) + x)
        coarse = self.coarse(self.down(x))
        return [self.fine(x) + F.interpolate(coarse, scale_factor=2.0), coarse]


class Detector(nn.Module):
    """Takes images one by one and loops over levels, so that it is captured in regions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.tower = nn.Sequential(_conv_bn(16, 16), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 4, 1)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        """Return scores (N, 3, H, W) and boxes (N, 4, H, W), level after level."""
        results = []
        for features in self.backbone(torch.stack([image * 2 - 1 for image in images])):
            y = self.tower(features)
            results += [self.scores(y), self.boxes(y)]
        return results


def _conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _digits(data: Path | None) -> Subject:
    images = load_data()[0][:NUM_IMAGES]
    return Subject(_draw_batchnorms(DigitsNet()), torch.split(images, BATCH_SIZE))


def _resnet20(data: Path | None) -> Subject:
    if data is None:
        images = torch.randn(NUM_IMAGES, 3, 32, 32)
        return Subject(_draw_batchnorms(CifarResNet(20)), torch.split(images, BATCH_SIZE))
    images = normalize(np.load(data / "cifar10.npz")["calib_x"][:NUM_IMAGES])
    model = load_model(data / "cifar10_resnet20.safetensors")
    return Subject(model, torch.split(images, BATCH_SIZE))


def _detector(data: Path | None) -> Subject:
    batches = torch.rand(NUM_BATCHES + 1, BATCH_SIZE, 3, 16, 16)
    return Subject(_draw_batchnorms(Detector()), [list(batch) for batch in batches])


def _squeezenet(data: Path | None) -> Subject:
    model: nn.Module = torchvision.models.squeezenet1_1(weights=None).eval()
    if data is None:
        images = torch.randn(NUM_IMAGES, 3, SIDE, SIDE)
        return Subject(model, torch.split(images, BATCH_SIZE))
    model.load_state_dict(load_file(data / "imagenet_squeezenet1_1.safetensors"))
    folders = sorted((data / "imagenet" / "val").iterdir())[:NUM_IMAGES]
    pixels = np.stack([_read_image(min(folder.iterdir())) for folder in folders])
    return Subject(model, torch.split(normalize(pixels), BATCH_SIZE))


def _read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE)))


NETWORKS: dict[str, Callable[[Path | None], Subject]] = {
    "digits": _digits,
    "resnet20": _resnet20,
    "detector": _detector,
    "squeezenet1_1": _squeezenet,
}


def _draw_batchnorms(model: nn.Module) -> nn.Module:
    """Return `model` in eval mode, no batch norm in it with statistics or weights of 0 and 1."""
    ends = {
        "running_mean": (-0.1, 0.1),
        "running_var": (0.05, 0.3),  # PyTorch draws weights that shrink what goes through
        "weight": (0.5, 1.5),
        "bias": (-0.5, 0.5),
    }
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()  # the module's own memory
            for name, (low, high) in ends.items():
                state[name].uniform_(low, high)
    return model.eval()


def digest(value: Any) -> str:
    """Return the SHA-256 of tensors in lists and dicts, bit by bit, with types and shapes.

    >>> digest([torch.zeros(2)])[:8] == digest((torch.zeros(2),))[:8] != digest(torch.zeros(2))[:8]
    True
    """
    hasher = hashlib.sha256()
    for part in _parts(value):
        hasher.update(part)
    return hasher.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """Yield what tells a value from all others.

    Raises:
        TypeError: it is neither a tensor, a list, a dict nor a plain value.
    """
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}:".encode()
        yield value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        yield f"dict {len(value)}:".encode()
        for key, item in sorted(value.items()):
            yield f"{key!r}:".encode()
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}:".encode()
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield f"{value!r}:".encode()
    else:
        raise TypeError(f"cannot digest a {type(value).__name__}")


def digest_pair(subject: Subject, recipe: Recipe) -> Record:
    """Quantize a network, lower it, and return the digests of both, or the error."""
    torch.manual_seed(0)
    *calibration, batch = subject.batches
    record: Record = {}
    try:
        quantized = fxquant.quantize(subject.model, calibration, recipe, progress=False)
        state = quantized.state_dict()
        record["state"] = digest(state)
        record["simulated"] = digest(_outputs(quantized, batch))
        record |= {f"state of {name}": digest(state[name])[:16] for name in sorted(state)}
        record["lowered"] = digest(_outputs(fxquant.lower(quantized), batch))
    except fxquant.LoweringError as refusal:
        record["refused"] = str(refusal).partition("\n")[0]
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    return record


def _outputs(model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return model(batch)


def digest_all(data: Path | None, pattern: str = "*") -> dict[str, Record]:
    """Return the record of each pair whose name matches; print a line for each."""
    records = {}
    for network, make in NETWORKS.items():
        chosen = [name for name in RECIPES if fnmatch.fnmatchcase(f"{network}, {name}", pattern)]
        if not chosen:
            continue
        torch.manual_seed(0)
        subject = make(data)
        for name in chosen:
            start = time.perf_counter()
            record = records[f"{network}, {name}"] = digest_pair(subject, RECIPES[name])
            seconds = time.perf_counter() - start
            shown = " ".join(
                f"{key} {_short(record[key])}"
                for key in ("state", "simulated", "lowered", "refused", "error")
                if key in record
            )
            print(f"{network:14} {name:24} {seconds:5.1f} s  {shown}", flush=True)
    return records


def _short(words: str | None) -> str:
    """Return the first letters of a digest, or the words of a refusal up to a length."""
    if words is None:
        return "none"
    return (words[:50] + "…" if len(words) > 50 else words) if " " in words else words[:8]


def environment() -> dict[str, str]:
    """Return what digests depend on beside the code."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def differences(before: dict[str, Record], now: dict[str, Record]) -> list[list[str]]:
    """Return the table's rows: pair, what differs, its digest before and now.

    >>> differences({"net, gram": {"state": "1a"}}, {"net, gram": {"state": "2b"}})
    [['net, gram', 'state', '1a', '2b']]
    """
    rows = []
    for pair in dict.fromkeys([*before, *now]):
        old, new = before.get(pair, {}), now.get(pair, {})
        names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        cells = [[_short(each.get(name)) for each in (old, new)] for name in names[:SHOWN]]
        rows += [[pair, name, *both] for name, both in zip(names, cells, strict=False)]
        if len(names) > SHOWN:
            rows.append([pair, f"and {len(names) - SHOWN} more", "", ""])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the digests, or print what differs and exit with 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--compare", type=Path, help="file of an earlier run")
    parser.add_argument("--data", type=Path, help="folder of trained weights and images")
    parser.add_argument("--match", default="*", help='glob on pairs: "digits, *", "*, gram"')
    options = parser.parse_args(arguments)
    if options.out is None and options.compare is None:
        parser.error("give --out FILE, --compare FILE, or both")
    before = None
    if options.compare is not None:
        before = json.loads(options.compare.read_text())
        if before["with data"] != (options.data is not None):
            had, hint = ("", "give it too") if before["with data"] else ("out", "leave it out")
            parser.error(f"{options.compare} was made with{had} --data: {hint}")
    logging.getLogger("fxquant").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    start = time.perf_counter()
    records = digest_all(options.data, options.match)
    print(f"{len(records)} pairs in {time.perf_counter() - start:.0f} s")
    if options.out is not None:
        found = {**environment(), "with data": options.data is not None, "digests": records}
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if before is None:
        return
    for name, value in environment().items():
        if before[name] != value:
            print(f"{name}: {before[name]} before, {value} now: expect other digests")
    expected = {
        pair: record
        for pair, record in before["digests"].items()
        if fnmatch.fnmatchcase(pair, options.match)
    }
    rows = differences(expected, records)
    if rows:
        print(tabulate(rows, ["network, recipe", "what", "before", "now"], disable_numparse=True))
        raise SystemExit(1)
    print("nothing differs")


if __name__ == "__main__":
    main()
