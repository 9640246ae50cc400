"""Hold int8 inference against its simulation: fxquant's kernels, and its ONNX file elsewhere.

    python -m benchmarks.int8.int8_parity --data cifar10.npz --weights cifar10_resnet20.safetensors
    python -m benchmarks.int8.int8_parity --model squeezenet1_1 --data imagenet/val --weights FILE

The first table has the top-1 of the float network, of the fake-quantized one (the simulation), of
`fxquant.lower`, and of the file of `fxquant.export_onnx` in onnxruntime, which is installed into an
environment of its own; how many predictions are the simulation's; and the logits' greatest
difference from the simulation's, in steps: a 255th of the simulated logits' range, which is what
8 bits would resolve. The second one is `fxquant.compare`, node by node.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxquant
from benchmarks.data.pretrained import load_model
from benchmarks.judging.comparison import predict
from benchmarks.ranges import cifar10, imagenet
from benchmarks.running.environments import ONNXRUNTIME, interpreter
from benchmarks.running.racing import Contestant

HERE = Path(__file__).parents[1]
_BATCH = 25
_STEPS = 255
_MAX_SECONDS = 600.0


@dataclass(frozen=True)
class Row:
    """How one form of the network did."""

    name: str
    top1: float
    """Percent of the labels."""
    equal: float
    """Percent of the simulation's predictions."""
    steps: float
    """The logits' greatest difference from the simulation's."""


def compare_logits(forms: dict[str, Tensor], simulated: Tensor, labels: Tensor) -> list[Row]:
    """Return a row for each form of the network.

    Args:
        forms: logits (N, classes) by name.
        simulated: those of the simulation.
        labels: (N,).
    """
    step = ((simulated.max() - simulated.min()) / _STEPS).item()
    classes = simulated.argmax(dim=1)
    rows = []
    for name, logits in forms.items():
        predicted = logits.argmax(dim=1)
        top1 = _percent(predicted == labels)
        largest = (logits - simulated).abs().max().item()
        rows.append(Row(name, top1, _percent(predicted == classes), largest / step))
    return rows


def _percent(hits: Tensor) -> float:
    return hits.double().mean().item() * 100


def table(rows: list[Row]) -> str:
    """Return the rows as a table."""
    cells = [[row.name, f"{row.top1:.1f}", f"{row.equal:.1f}", f"{row.steps:.2f}"] for row in rows]
    columns = ["", "top-1 %", "predicts as simulated %", "greatest difference, steps"]
    return tabulate(cells, columns, disable_numparse=True)


def predict_by_onnxruntime(quantized: nn.Module, images: Tensor, peers: Path) -> Tensor:
    """Return the logits (N, classes) of the network's ONNX file.

    Raises:
        Dropped: onnxruntime cannot run it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fxquant.export_onnx(quantized, folder / "model.onnx", images[:_BATCH])
        inputs, outputs = folder / "inputs.npz", folder / "outputs.npz"
        np.savez(inputs, calibration=images[:0].numpy(), test=images.numpy())
        command = [str(interpreter(ONNXRUNTIME, peers)), "-m", "benchmarks.peers.onnxruntime_int8"]
        command += ["as-it-is", "--model", str(folder / "model.onnx"), "--inputs", str(inputs)]
        command += ["--outputs", str(outputs), "--batch", str(_BATCH), "--threads", "2"]
        log = HERE / ".cache" / "int8_logs" / "parity.txt"
        with Contestant(command, threads=2, log=log, max_seconds=_MAX_SECONDS) as contestant:
            contestant.get_ready()
        with np.load(outputs) as arrays:
            return torch.from_numpy(arrays["0"])[: len(images)]


def load(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return the float network, calibration images, test images and their labels."""
    if options.data.suffix == ".npz":
        data = np.load(options.data)
        model: nn.Module = cifar10.load_model(options.weights)
        calibration = cifar10.normalize(data["calib_x"][: options.calibration or 256])
        images = cifar10.normalize(data["test_x"][: options.images])
        return model, calibration, images, torch.from_numpy(data["test_y"]).long()[: len(images)]
    images, labels = imagenet.load_images(options.data, options.images)
    model = load_model(options.model, options.weights)
    return model, images[: options.calibration or 64], images, labels


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="squeezenet1_1", help="of torchvision, for a folder")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10's npz, or a folder")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--calibration", type=int, help="images; 256, of a folder 64")
    parser.add_argument("--images", type=int, help="evaluate on so many only")
    parser.add_argument("--bits", type=int, default=8, help="of the weights")
    parser.add_argument("--peers", type=Path, default=HERE / ".cache" / "peers")
    options = parser.parse_args()
    model, calibration, images, labels = load(options)
    recipe = fxquant.Recipe.aciq(weight_bits=options.bits)
    batches = torch.split(calibration, 32)
    quantized = fxquant.quantize(model, batches, recipe, progress=False)
    lowered = fxquant.lower(quantized, images[:_BATCH])
    simulated = predict(quantized, images, _BATCH)
    forms = {"float": predict(model, images, _BATCH), "simulation": simulated}
    forms["fxquant.lower"] = predict(lowered, images, _BATCH)
    forms["onnxruntime"] = predict_by_onnxruntime(quantized, images, options.peers)
    print(table(compare_logits(forms, simulated, labels)))
    print()
    print(fxquant.compare(quantized, lowered, list(torch.split(images, _BATCH))[:4]))


if __name__ == "__main__":
    main()
