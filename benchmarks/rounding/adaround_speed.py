"""Time AdaRound against AIMET's own, everything from the float model to the rounded one.

    python -m benchmarks.rounding.adaround_speed cifar --data cifar10.npz \
        --weights resnet20.safetensors
    python -m benchmarks.rounding.adaround_speed resnet18

Same network, images, bits, per-channel scales, and steps a layer; each with its own batches (AIMET:
32 images), learning rate and choice of scales. AIMET is installed into an environment of its own.
`resnet18` has random weights and images: AIMET takes `--peer-steps` on every layer, and the time of
its optimizer is scaled to `--own-steps`; what it needs beside the optimizer is as measured. What it
reaches in 1,000 steps `--peer-steps 1000` tells, in half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxquant
from benchmarks.judging.comparison import predict
from benchmarks.ranges.cifar10 import load_model, normalize
from benchmarks.running.allocator import SETTINGS, keep_memory
from fxquant.numerics.decibels import sqnr

HERE = Path(__file__).parents[1]
REQUIREMENTS = ["aimet-torch==2.42.0", f"torch=={torch.__version__.partition('+')[0]}"]


def peer_python(folder: Path) -> Path:
    """Return the interpreter of AIMET's environment, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(REQUIREMENTS)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def run_peer(
    python: Path, model: nn.Module, images: Tensor, test: dict[str, Tensor] | None, **options: Any
) -> dict[str, Any]:
    """Return what AIMET's AdaRound took and reached.

    Args:
        python: of its environment.
        model: float.
        images: to calibrate on.
        test: images and labels to judge by.
        options: of `benchmarks/peers/aimet_adaround.py`; True for a flag, a list for several
            values.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(fx.symbolic_trace(model), folder / "model.pt")
        torch.save(images, folder / "images.pt")
        command = [str(python), str(HERE / "peers" / "aimet_adaround.py")]
        command += ["--model", str(folder / "model.pt"), "--images", str(folder / "images.pt")]
        if test is not None:
            torch.save(test, folder / "test.pt")
            command += ["--test", str(folder / "test.pt")]
        for option, value in options.items():
            several = value if isinstance(value, list) else [value] * (value is not True)
            command += [f"--{option.replace('_', '-')}", *map(str, several)]
        command += ["--out", str(folder / "result.json")]
        log = folder / "log.txt"
        with log.open("w") as file:
            done = subprocess.run(
                command, env={**os.environ, **SETTINGS}, stdout=file, stderr=file, check=False
            )
        if done.returncode != 0:
            raise SystemExit(f"AIMET failed:\n{log.read_text()[-3000:]}")
        result = json.loads((folder / "result.json").read_text())
        assert isinstance(result, dict)
        return result


def run_own(
    model: nn.Module, images: Tensor, bits: int, steps: int | None
) -> tuple[nn.Module, float]:
    """Return the rounded model and the seconds from the float one.

    Args:
        model: the float one.
        images: to learn from.
        bits: of the weights.
        steps: AdaRound's for each layer; None: by the Gram matrix.
    """
    by: dict[str, Any] = {"method": "gram"} if steps is None else {"steps": steps}
    recipe = fxquant.Recipe.adaround(weight_bits=bits, activation_bits=None, **by)
    start = time.perf_counter()
    quantized = fxquant.quantize(model, torch.split(images, 64), recipe, progress=False)
    return quantized, time.perf_counter() - start


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the percent of images that are classified as labelled."""
    return (predict(model, images).argmax(dim=1) == labels).double().mean().item() * 100


def compare_cifar(options: argparse.Namespace) -> None:
    """Print seconds and accuracy of both on a trained CIFAR ResNet-20, for several steps."""
    data = np.load(options.data)
    model = load_model(options.weights)
    images = normalize(data["calib_x"][: options.images])
    test = {
        "images": normalize(data["test_x"]), "labels": torch.from_numpy(data["test_y"]).long()
    }  # fmt: skip
    run_own(model, images[:64], options.bits, 10)  # warm up
    rows = []
    for steps in options.own_steps:
        quantized, seconds = run_own(model, images, options.bits, steps)
        rows.append(["fxquant", steps, seconds, top1(quantized, **test)])
        print(rows[-1], flush=True)
    for steps in options.peer_steps:
        result = run_peer(
            peer_python(options.peer), model, images, test, bits=options.bits, steps=steps
        )
        rows.append(["AIMET", steps, result["seconds"], result["top1"]])
        print(rows[-1], flush=True)
    print(f"\nResNet-20, {len(images)} images, {options.bits} bits, weights only:\n")
    print(tabulate(rows, ["", "steps a layer", "seconds", "top-1 %"], floatfmt=".1f"))
    own = {steps: seconds for name, steps, seconds, _ in rows if name == "fxquant"}
    for name, steps, seconds, accuracy in rows:
        if name == "AIMET" and steps in own:
            print(f"\n{steps} steps: {seconds / own[steps]:.1f} x as fast as AIMET")
        if name == "AIMET":
            better = [row for row in rows if row[0] == "fxquant" and row[3] >= accuracy]
            if better:
                least = min(better, key=lambda row: float(row[2]))
                print(
                    f"AIMET's {accuracy:.1f} % at {steps} steps: {seconds:.1f} s against "
                    f"{least[2]:.1f} s for {least[3]:.1f} % ({least[1]} steps): "
                    f"{seconds / least[2]:.1f} x"
                )


def smooth_images(number: int) -> Tensor:
    """Return random images, smooth as images are: (number, 3, 224, 224)."""
    return F.interpolate(torch.randn(number, 3, 28, 28), scale_factor=8, mode="bilinear")


def compare_resnet18(options: argparse.Namespace) -> None:
    """Print both on torchvision's ResNet-18 at 224², random weights and images.

    What is judged is on images that none of them saw: how often the class is the float network's,
    and the logits' SQNR.
    """
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    images, unseen = smooth_images(options.images), smooth_images(64)
    expected = predict(model, unseen)
    test = {"images": unseen, "labels": expected.argmax(dim=1)}
    run_own(model, images[:8], options.bits, 2)  # warm up
    rows: list[list[Any]] = []
    for steps in (None, *options.own_steps):
        quantized, seconds = run_own(model, images, options.bits, steps)
        name = "fxquant, AdaRound" if steps else "fxquant, Gram matrix"
        found = sqnr(expected, predict(quantized, unseen))
        rows.append([name, steps, seconds, top1(quantized, **test), found])
        print(rows[-1], flush=True)
    (taken,) = options.peer_steps
    result = run_peer(
        peer_python(options.peer), model, images, test, bits=options.bits, steps=taken
    )
    beside = result["seconds"] - result["optimizing"]
    print(
        f"AIMET: {taken} steps on each of {result['num_layers']} layers took "
        f"{result['optimizing']:.1f} s, all else {beside:.1f} s; {result['top1']:.1f} %, "
        f"{result['decibels']:.1f} dB"
    )
    for steps in {*options.own_steps, taken}:
        seconds = beside + result["optimizing"] * steps / taken
        quality = [result["top1"], result["decibels"]] if steps == taken else [None, None]
        rows.append(["AIMET", steps, seconds, *quality])
    rows.sort(key=lambda row: (row[0], row[1] or 0))
    whole = max(row[2] for row in rows if row[0] == "AIMET")
    table = [[*row, f"{whole / row[2]:.1f} x"] for row in rows]
    columns = ["", "steps a layer", "seconds", "agrees %", "logits dB", f"of {whole:.0f} s"]
    print(f"\nResNet-18 at 224², {len(images)} images, {options.bits} bits, weights only:\n")
    print(tabulate(table, columns, floatfmt=".1f"))


def main() -> None:
    """Print the table of one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("network", choices=["cifar", "resnet18"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, help="1,024 for cifar, 256 for resnet18")
    parser.add_argument("--bits", type=int, help="3 for cifar, 4 for resnet18")
    parser.add_argument("--own-steps", type=int, nargs="+")
    parser.add_argument("--peer-steps", type=int, nargs="+")
    parser.add_argument("--peer", type=Path, default=HERE / ".cache" / "aimet", help="its venv")
    options = parser.parse_args()
    keep_memory()
    options.bits = options.bits or {"cifar": 3, "resnet18": 4}[options.network]
    if options.network == "cifar":
        if options.data is None or options.weights is None:
            parser.error("cifar needs --data and --weights")
        options.images = options.images or 1024
        options.own_steps = options.own_steps or [20, 50, 200, 1000]
        options.peer_steps = options.peer_steps or [200, 1000]
        compare_cifar(options)
    else:
        options.images = options.images or 256
        options.own_steps = options.own_steps or [50, 100, 200, 1000]
        options.peer_steps = options.peer_steps or [10]
        compare_resnet18(options)


if __name__ == "__main__":
    main()
