"""Sizes on disk: float, fxquant's own files at 8, 4, 3 and 2 bits, on int8 kernels, and ONNX.

    python -m benchmarks.int8.int8_sizes [--models resnet18 …] [--bits 8 4 3 2]

In MB of 1,000,000 bytes. What the layers need at least, Σ weights · bits / 8 and 4 bytes for each
scale and each bias, is in brackets behind each file; for float that is 32 bits and no scales. The
weights are random, which is no matter.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxquant
from benchmarks.networks.int8_networks import NETWORKS, Network, build, images
from benchmarks.peers.serving import brief
from benchmarks.running.quiet import stderr_to
from fxquant.modules.quantized_layer import QuantizedLayer

BITS = (8, 4, 3, 2)
LOG = Path(__file__).parents[1] / ".cache" / "int8_logs" / "sizes.txt"
_SIZE = 64  # pixels; what is stored does not depend on it


def needed_bytes(quantized: nn.Module, bits: int | None = None) -> float:
    """Return the bytes of all layers' weights at their bits, and of their scales and biases.

    Args:
        quantized: what `fxquant.convert` returned.
        bits: others than the weights have; at 32 there are no scales.
    """
    total = 0.0
    for module in quantized.modules():
        if isinstance(module, QuantizedLayer):
            width = bits or module.weight_spec.bits
            bias = module.bias
            total += module.weight_integers.numel() * width / 8
            total += 4 * module.weight_scale.numel() if width < 32 else 0
            total += 4 * bias.numel() if isinstance(bias, Tensor) else 0
    return total


def sizes_of(wanted: Network, all_bits: Sequence[int]) -> dict[str, str]:
    """Return the cells of one network, by column."""
    model, batch = build(wanted), images(wanted, wanted.batch, seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not parameter.any():
            nn.init.normal_(parameter, std=0.01)  # zeros would take no room
    cells: dict[str, str] = {}
    for bits in all_bits:
        recipe = fxquant.Recipe.minmax(weight_bits=bits)
        quantized = fxquant.quantize(model, [batch], recipe, progress=False)
        if not cells:
            save_float = partial(torch.save, model.state_dict())
            cells["float"] = _cell(save_float, needed_bytes(quantized, 32))
        needed = needed_bytes(quantized)
        cells[f"{bits} bits"] = _cell(partial(fxquant.save, quantized), needed)
        if bits == 8:
            lowered = fxquant.lower(quantized, batch)
            export = partial(fxquant.export_onnx, quantized, example_inputs=batch)
            cells["8 bits, lowered"] = _cell(partial(fxquant.save, lowered), needed)
            cells["8 bits, ONNX"] = _cell(export, needed)
    return cells


def _cell(write: Callable[[Path], object], needed: float) -> str:
    """Return the size of a file against what is needed, or why it cannot be written."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with stderr_to(LOG):  # torch.export prints the graphs that it cannot take
                write(Path(folder) / "model")
        except fxquant.FxquantError as error:
            return brief(error)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return f"{size / 1e6:.2f} ({needed / 1e6:.2f})"


def table(rows: dict[str, dict[str, str]]) -> str:
    """Return the cells of each network as a table; columns are those of all networks."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [[name, *[cells.get(each, "") for each in columns]] for name, cells in rows.items()]
    return tabulate(lines, ["MB (needed)", *columns], disable_numparse=True, maxcolwidths=30)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, default=BITS)
    options = parser.parse_args()
    rows: dict[str, dict[str, str]] = {}
    for name in options.models:
        print(name, file=sys.stderr)
        rows[name] = sizes_of(Network(name, batch=2, size=_SIZE), options.bits)
    print(table(rows))


if __name__ == "__main__":
    main()
