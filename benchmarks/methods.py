"""Quantize a trained network by every method at every width, and print what each gave and took.

    python -m benchmarks.methods digits
    python -m benchmarks.methods cifar --data cifar10.npz --weights cifar10_resnet20.safetensors
    python -m benchmarks.methods imagenet --data imagenet/val --weights squeezenet1_1.safetensors

Rows are methods, columns the bits of weights and activations; "mixed" are `Recipe.mixed` at an
average of that many bits a weight, activations in float. Four tables: top-1 in percent (mean and
standard deviation over seeds, which draw other rows and other steps), predictions that agree with
the float network's, the logits' SQNR in dB, and seconds from the float network to the quantized
one. Methods that draw nothing run once. All take the same calibration images. Runs are kept in a
file, and not done again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import digits
from benchmarks.data.pretrained import load_model
from benchmarks.judging.comparison import Result, compare, predict
from benchmarks.ranges import cifar10, imagenet
from benchmarks.running.allocator import keep_memory
from fxquant import Recipe
from fxquant.recipe import FREE_BLOCKS, Budget

HERE = Path(__file__).parent
UNIFORM: dict[str, tuple[int, int | None]] = {
    "8/8": (8, 8), "4/8": (4, 8), "4/4": (4, 4), "3/32": (3, None), "2/32": (2, None), "2/4": (2, 4)
}  # fmt: skip
MIXED = {"mixed 4/32": 4.0, "mixed 3/32": 3.0}

Make = Callable[..., Recipe]


def _nearest(*, seed: int = 0, **options: Any) -> Recipe:
    """Return AdaRound's ranges with nothing learned."""
    return Recipe.adaround(reconstruction=None, end_bits=None, **options)


def _aciq_weights(**options: Any) -> Recipe:
    """Return the same with ACIQ's ranges for weights, channel by channel."""
    return _nearest(weight_range="aciq", **options)


def _learned(**fixed: Any) -> Make:
    by_layer: dict[str, Any] = {"blocks": False, "end_bits": None}  # whatever the bits
    return lambda **options: Recipe.adaround(**{**by_layer, **fixed, **options})


def _aciq(**fixed: Any) -> Make:
    def make(*, seed: int = 0, **options: Any) -> Recipe:
        return Recipe.aciq(**fixed, **options)

    return make


def _minmax(*, seed: int = 0, **options: Any) -> Recipe:
    return Recipe.minmax(**options)


METHODS: dict[str, Make] = {
    "nearest, min-max": _minmax,
    "nearest, least squares": _nearest,
    "nearest, ACIQ for weights": _aciq_weights,
    "ACIQ": _aciq(bias_correction=False),
    "ACIQ, per channel": _aciq(bias_correction=False, activation_per_channel=True),
    "ACIQ, per channel, bits allocated": _aciq(
        bias_correction=False, activation_per_channel=True, activation_bit_allocation=True
    ),
    "ACIQ, equalized": _aciq(bias_correction=False, equalization=True),
    "ACIQ, biases corrected": _aciq(),
    "ACIQ, batch norms tuned": _aciq(bias_correction=False, batchnorm_tuning=True),
    "Gram matrix": _learned(method="gram"),
    "Gram matrix, batch norms tuned": _learned(method="gram", batchnorm_tuning=True),
    "AdaRound": _learned(),
    "AdaRound, batch norms tuned": _learned(batchnorm_tuning=True),
    "AdaQuant": _learned(method="adaquant"),
    "AdaQuant, parallel": _learned(method="adaquant", parallel=True),
    "AdaQuant, parallel, batch norms tuned": _learned(
        method="adaquant", parallel=True, batchnorm_tuning=True
    ),
    "blocks": _learned(blocks=True, drop=0.0),
    "blocks, QDrop": _learned(blocks=True),
    "blocks, AdaQuant": _learned(**FREE_BLOCKS),
}


@dataclass(frozen=True)
class Cell:
    """One run of a method."""

    column: str
    method: str
    seed: int


def recipe_of(cell: Cell) -> Recipe:
    """Return the recipe of a run."""
    options: dict[str, Any] = {"weight_bits": 4, "activation_bits": None, "seed": cell.seed}
    if cell.column in MIXED:
        options["budget"] = Budget(average_bits=MIXED[cell.column])
    else:
        options["weight_bits"], options["activation_bits"] = UNIFORM[cell.column]
    return METHODS[cell.method](**options)


def cells(methods: list[str], columns: list[str], seeds: int) -> Iterator[Cell]:
    """Yield the runs; of a method that draws nothing, one."""
    for column in columns:
        for method in methods:
            if "per channel" in method and UNIFORM.get(column, (0, None))[1] is None:
                continue  # of activations
            draws = recipe_of(Cell(column, method, 0)).reconstruction is not None
            for seed in range(seeds if draws else 1):
                yield Cell(column, method, seed)


def tables(results: list[Result], columns: list[str]) -> str:
    """Return the four tables."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.method, each.bits), []).append(each)
    forms: dict[str, Callable[[list[Result]], str]] = {
        "top-1 %": lambda group: _spread([each.top1 for each in group]),
        "agrees with float %": lambda group: f"{_mean(group, 'agreement'):.1f}",
        "logits, dB": lambda group: f"{_mean(group, 'logit_sqnr'):.1f}",
        "seconds": lambda group: f"{_mean(group, 'seconds'):.1f}",
    }
    methods = list(dict.fromkeys(each.method for each in results))
    found = []
    for title, form in forms.items():
        rows = [
            [method, *[form(groups[method, column]) if (method, column) in groups else ""
                       for column in columns]]
            for method in methods
        ]  # fmt: skip
        found.append(tabulate(rows, [title, *columns], disable_numparse=True))
    return "\n\n".join(found)


def _mean(group: list[Result], name: str) -> float:
    values: list[float] = [getattr(each, name) for each in group]
    return statistics.mean(values)


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return the float network, calibration images, test images and labels."""
    if options.network == "digits":
        train_x, train_y, test_x, test_y = digits.load_data()
        model = digits.trained_model(train_x, train_y, HERE / ".cache" / "digits.pt")
        return model, train_x[: options.calibration], test_x, test_y
    if options.data is None or options.weights is None:
        raise SystemExit(f"{options.network}: give --data and --weights")
    if options.network == "imagenet":
        images, labels = imagenet.load_images(options.data)
        return (
            load_model(options.model, options.weights),
            images[: options.calibration],
            images,
            labels,
        )
    data = np.load(options.data)
    calibration = cifar10.normalize(data["calib_x"][: options.calibration])
    labels = torch.from_numpy(data["test_y"]).long()
    return (
        cifar10.load_model(options.weights),
        calibration,
        cifar10.normalize(data["test_x"]),
        labels,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("network", choices=("digits", "cifar", "imagenet"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", default="squeezenet1_1", help="of torchvision, for imagenet")
    parser.add_argument("--calibration", type=int, default=1024, help="number of images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["*"], help="globs on the rows")
    parser.add_argument("--columns", nargs="+", default=[*UNIFORM, *MIXED], help="of the tables")
    parser.add_argument("--results", type=Path, help="runs that are in it are not done again")
    options = parser.parse_args()
    options.results = options.results or HERE / "results" / f"methods_{options.network}.json"
    keep_memory()
    methods = [
        name for name in METHODS if any(fnmatch.fnmatch(name, glob) for glob in options.methods)
    ]
    model, calibration, images, labels = load(options)
    done = read(options.results)
    results = []
    for cell in tqdm(list(cells(methods, options.columns, options.seeds)), "runs", disable=None):
        if cell not in done:
            asked = [(cell.column, cell.method, recipe_of(cell))]
            _, done[cell] = compare(model, asked, calibration, images, labels, batch_size=64)
            write(options.results, done)
        results.append(done[cell])
    top1 = (predict(model, images).argmax(dim=1) == labels).double().mean().item() * 100
    print(f"float: {top1:.1f} %; {len(calibration)} images, {len(labels)} to test\n")
    print(tables(results, options.columns))


def read(path: Path) -> dict[Cell, Result]:
    """Return the runs that are kept in a file."""
    if not path.exists():
        return {}
    return {Cell(**each["cell"]): Result(**each["result"]) for each in json.loads(path.read_text())}


def write(path: Path, done: dict[Cell, Result]) -> None:
    """Keep the runs in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{"cell": asdict(cell), "result": asdict(result)} for cell, result in done.items()]
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
