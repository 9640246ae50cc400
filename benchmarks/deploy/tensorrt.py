"""Whether TensorRT takes our files of whole networks: its documented rules, without TensorRT.

    python -m benchmarks.deploy.tensorrt [NETWORK …] [--batch 2] [--data FOLDER]

Networks are quantized for `target="tensorrt"` and exported; a row holds how many of the file's
layers read int8 with both operands, what of the rules is broken (errors, advice on speed), and dB
against the float network's outputs. Without `--data` weights are random. The exit status is 1 where
a rule is broken. TensorRT itself runs in `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

import fxquant
from benchmarks.int8.int8_contestants import least_sqnr
from benchmarks.networks.int8_networks import CALIBRATION_IMAGES, Network, build, images, network
from benchmarks.peers.serving import brief
from benchmarks.peers.torch_arrays import tensors
from benchmarks.running.quiet import stderr_to
from fxquant.deploy.onnx_links import Links, is_a
from fxquant.deploy.tensorrt_rules import Violation, check

NETWORKS = ("resnet50", "mobilenet_v2", "yolov8n_body", "retinanet_resnet50_fpn")
COLUMNS = ("network", "layers", "in int8", "errors", "advice", "dB")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and what is broken behind it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of weights")
    options = parser.parse_args(arguments)
    rows, broken = [], []
    for name in options.networks:
        cells, found = measure(network(name, options.batch, options.data))
        rows.append([name, *cells])
        broken += [f"{name}: {each}" for each in found]
    print(tabulate(rows, COLUMNS, disable_numparse=True))
    if broken:
        print("\n".join(broken))
    if broken or any(len(row) < len(COLUMNS) for row in rows):
        sys.exit(1)


def measure(wanted: Network) -> tuple[list[str], list[Violation]]:
    """Return the cells of a network's row, or why there are none, and what its file breaks."""
    import onnx

    model = build(wanted)
    batches = torch.split(images(wanted, CALIBRATION_IMAGES, seed=1), wanted.batch)
    test = images(wanted, wanted.batch, seed=2)
    recipe = fxquant.Recipe.aciq(target="tensorrt")
    quantized = fxquant.quantize(model, batches, recipe, progress=False)
    with torch.no_grad():
        expected, found = list(tensors(model(test))), list(tensors(quantized(test)))
    decibels = least_sqnr(expected, found, wanted.num_compared)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with stderr_to(Path(folder) / "log.txt"):
                is_free = wanted.kind != "detector"  # whose Python counts the images
                fxquant.export_onnx(quantized, path, test, dynamic_batch=is_free)
        except fxquant.LoweringError as error:
            return [f"cannot export: {brief(error)}"], []
        violations = check(path)
        links = Links(onnx.load(path))
    layers = [node for node in links.nodes if is_a(node, *_LAYERS)]
    integer = sum(reads_integers(links, *node.input[:2]) for node in layers)
    advice = sum(each.is_advice for each in violations)
    counts = (len(layers), integer, len(violations) - advice, advice)
    return [*map(str, counts), f"{decibels:.1f}"], violations


def reads_integers(links: Links, *operands: str) -> bool:
    """Say whether all operands are dequantized, transposed behind that or not."""
    producers = [links.producer(name) for name in operands]
    while any(is_a(each, "Transpose") for each in producers):
        producers = [
            links.producer(each.input[0]) if is_a(each, "Transpose") else each for each in producers
        ]
    return all(is_a(each, "DequantizeLinear") for each in producers)


if __name__ == "__main__":
    main()
