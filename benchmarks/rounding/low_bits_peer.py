"""Quantize MobileNetV2 to few bits by AIMET and by QDrop's authors' code, and by ours; one table.

    git clone https://github.com/wimh966/QDrop
    python -m benchmarks.rounding.low_bits_peer --data imagenet/val \
        --weights mobilenet_v2.safetensors --qdrop QDrop

Network, images and cells are those of `benchmarks.rounding.low_bits`, one draw. AIMET runs its
cross-layer equalization and then AdaRound, with `--aimet-steps` steps a layer (10,000 by its
default), on activations where it places quantizers; QDrop with `--qdrop-steps` a block (20,000 in
the paper), and with Adam's rates ten times as high to make up for them. Both live in environments
of their own. QDrop is asked for 4/4 alone, what it is for; each of our rows is a recipe with its
defaults, in the literature's placement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.judging.comparison import compare, predict
from benchmarks.rounding.adaround_speed import peer_python, run_peer
from benchmarks.rounding.low_bits import COLUMNS, load_images, load_network, split
from benchmarks.running.allocator import SETTINGS, keep_memory
from benchmarks.running.environments import Environment, interpreter
from fxquant import Recipe
from fxquant.numerics.decibels import sqnr

HERE = Path(__file__).parents[1]
QDROP = Environment("qdrop", ("easydict", "pyyaml", "scipy"))
RANGE_IMAGES = 16  # of QDrop's search for ranges, whose time grows with them; 256 by its authors
RAISED = 10.0  # of QDrop's rates


def run_aimet(
    options: argparse.Namespace, model: nn.Module, images: Tensor, test: dict[str, Tensor]
) -> dict[str, tuple[Tensor, float]]:
    """Return AIMET's logits and seconds of each column."""
    python = peer_python(options.peers / "aimet")
    found: dict[str, tuple[Tensor, float]] = {}
    for bits in {COLUMNS[column][0] for column in options.columns}:
        columns = [column for column in options.columns if COLUMNS[column][0] == bits]
        with tempfile.TemporaryDirectory() as folder:
            outputs = Path(folder) / "outputs.pt"
            result = run_peer(
                python, model, images, test, bits=bits, steps=options.aimet_steps,
                activation_bits=[COLUMNS[column][1] for column in columns],
                equalize=True, outputs=outputs,
            )  # fmt: skip
            logits = torch.load(outputs)
        found |= {each: (logits[COLUMNS[each][1]], result["seconds"]) for each in columns}
    return found


def run_qdrop(
    options: argparse.Namespace, model: nn.Module, images: Tensor, test: dict[str, Tensor]
) -> tuple[Tensor, float]:
    """Return QDrop's logits and seconds at 4/4."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, value in {"weights": model.state_dict(), "images": images, "test": test}.items():
            torch.save(value, folder / f"{what}.pt")
        asked: dict[str, Any] = {
            "repo": options.qdrop, "weights": folder / "weights.pt",
            "images": folder / "images.pt", "test": folder / "test.pt",
            "outputs": folder / "outputs.pt", "out": folder / "result.json",
            "bits": 4, "activation-bits": 4, "steps": options.qdrop_steps,
            "learning-rate": RAISED * 1e-3, "scale-rate": RAISED * 4e-5,
            "range-images": RANGE_IMAGES,
        }  # fmt: skip
        command: list[Any] = [interpreter(QDROP, options.peers), HERE / "peers" / "qdrop_blocks.py"]
        for option, value in asked.items():
            command += [f"--{option}", value]
        log = folder / "log.txt"
        with log.open("w") as file:
            done = subprocess.run(
                [*map(str, command)],
                env={**os.environ, **SETTINGS},
                stdout=file,
                stderr=file,
                check=False,
            )
        if done.returncode != 0:
            raise SystemExit(f"QDrop failed:\n{log.read_text()[-3000:]}")
        seconds = json.loads((folder / "result.json").read_text())["seconds"]
        return torch.load(folder / "outputs.pt"), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--flipped", action="store_true")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=["4/8", "4/4"])
    parser.add_argument("--aimet-steps", type=int, default=500, help="per layer; 0: without it")
    parser.add_argument("--qdrop", type=Path, help="a clone of its repository; else without it")
    parser.add_argument("--qdrop-steps", type=int, default=300, help="per block")
    parser.add_argument("--peers", type=Path, default=HERE / ".cache", help="for environments")
    options = parser.parse_args()
    options.network = "mobilenet_v2"
    keep_memory()
    images, labels = load_images(options.data)
    model, images = load_network(options, images)
    calibrated, judged = split(len(images), draw=0)
    test = {"images": images[judged], "labels": labels[judged]}
    cells: dict[tuple[str, str], str] = {}
    expected = predict(model, test["images"])

    def put(name: str, column: str, logits: Tensor, seconds: float) -> None:
        classes = logits.argmax(dim=1)
        top1, agreement = (
            100 * (classes == each).double().mean().item()
            for each in (test["labels"], expected.argmax(dim=1))
        )
        decibels = sqnr(expected, logits)
        cells[name, column] = f"{top1:.1f}  {agreement:.1f}  {decibels:.1f}  {seconds:.0f}"

    if options.aimet_steps:
        name = f"AIMET, equalized, AdaRound, {options.aimet_steps} steps"
        for column, found in run_aimet(options, model, images[calibrated], test).items():
            put(name, column, *found)
    if options.qdrop:
        found = run_qdrop(options, model, images[calibrated], test)
        put(f"QDrop, {options.qdrop_steps} steps", "4/4", *found)
    recipes = []
    for column in options.columns:
        weight_bits, activation_bits = COLUMNS[column]
        recipe = Recipe.adaround(
            weight_bits=weight_bits, activation_bits=activation_bits, target="layers"
        )
        recipes.append((column, "fxquant, Recipe.adaround", recipe))
    for each in compare(model, recipes, images[calibrated], test["images"], test["labels"])[1:]:
        cells[each.method, each.bits] = (
            f"{each.top1:.1f}  {each.agreement:.1f}  {each.logit_sqnr:.1f}  {each.seconds:.0f}"
        )
    rows = [
        [name, *[cells.get((name, column), "") for column in options.columns]]
        for name in dict.fromkeys(name for name, _ in cells)
    ]
    top1 = 100 * (expected.argmax(dim=1) == test["labels"]).double().mean().item()
    heads = ["top-1 %, agrees %, dB, s", *options.columns]
    print(f"float: {top1:.1f} %\n\n{tabulate(rows, heads, disable_numparse=True)}")


if __name__ == "__main__":
    main()
