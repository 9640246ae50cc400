"""Count what AdaRound costs in depth: CIFAR ResNets of 20 to 110 layers, random weights.

    python -m benchmarks.rounding.adaround_depth

Collecting the data of all layers, as `fxquant.streaming.stream` does it, against running both
networks anew up to each layer, as a loop with forward hooks does it.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from tqdm import tqdm

import fxquant
from benchmarks.networks.cifar_resnet import CifarResNet
from benchmarks.running.allocator import keep_memory
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes import FoldBatchNorm, QuantizeWeights
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.subgraphs import find_subgraphs
from fxquant.streaming.value_store import ValueStore


class _Reached(Exception):
    """The layer whose data is collected has run."""


def collect_by_streaming(
    gm: fx.GraphModule, reference: fx.GraphModule, batches: list[tuple[Tensor]]
) -> int:
    """Return how many pairs of inputs and targets came by, a network's run each."""
    subgraphs = find_subgraphs(gm)
    with ValueStore() as store:
        sides = LayersSideBySide(Lesson(reference, batches), gm, subgraphs, store)
        return sum(sum(1 for _ in sides.rows(subgraph)) for subgraph in subgraphs)


def collect_by_running_anew(
    gm: fx.GraphModule, reference: fx.GraphModule, batches: list[tuple[Tensor]]
) -> int:
    """Return the same, with both networks run up to each layer."""

    def stop(*_: Any) -> None:
        raise _Reached

    count = 0
    for subgraph in tqdm(find_subgraphs(gm), "running anew", disable=None, leave=False):
        for batch in batches:
            for network in (gm, reference):
                handle = network.get_submodule(subgraph.name).register_forward_hook(stop)
                try:
                    network(*batch)
                except _Reached:
                    count += 1
                handle.remove()
    return count // 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 56, 110])
    options = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    images = torch.randn(options.images, 3, 32, 32)
    batches = [(batch,) for batch in torch.split(images, 64)]
    table = []
    for depth in options.depths:
        gm = fxquant.trace(CifarResNet(depth))
        FoldBatchNorm()(gm)
        reference: fx.GraphModule = copy.deepcopy(gm)
        QuantizeWeights(fxquant.Recipe.minmax(weight_bits=4))(gm)
        layers = sum(isinstance(module, QuantizedLayer) for module in gm.modules())
        seconds = []
        with torch.no_grad():
            _warm_up(gm, batches[0])
            for collect in (collect_by_streaming, collect_by_running_anew):
                start = time.perf_counter()
                count = collect(gm, reference, batches)
                seconds.append(time.perf_counter() - start)
                assert count == layers * len(batches)
        per_layer = [f"{1000 * each / layers:.0f}" for each in seconds]
        table.append([depth, *seconds, *per_layer, f"{seconds[1] / seconds[0]:.1f} x"])
    print(f"{options.images} images:\n")
    columns = ["layers", "streamed, s", "run anew, s", "ms a layer", "ms a layer", "ratio"]
    print(tabulate(table, columns, floatfmt=".1f"))


def _warm_up(gm: nn.Module, batch: tuple[Tensor]) -> None:
    for _ in range(3):
        gm(*batch)


if __name__ == "__main__":
    main()
