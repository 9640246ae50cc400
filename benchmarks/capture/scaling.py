"""Seconds of each pass on graphs of 500 to 10,000 nodes: linear, or not.

python -m benchmarks.capture.scaling
"""

from __future__ import annotations

import time

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxquant
from fxquant.passes import (
    AbsorbBatchNorm,
    DropIdentities,
    FoldBatchNorm,
    InsertObservers,
    LiftFunctionals,
    MarkFusedRelu,
)


class Chain(nn.Module):
    """Residual blocks of conv, batch norm, ReLU, dropout and addition: 5 nodes each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(blocks))
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's output."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + torch.relu(norm(conv(self.dropout(x))))
        return x


def main() -> None:
    """Print the table."""
    rows = []
    for blocks in (100, 200, 400, 1000, 2000):
        start = time.perf_counter()
        gm = fxquant.trace(Chain(blocks))
        num_nodes = len(gm.graph.nodes)
        seconds = [time.perf_counter() - start]
        start = time.perf_counter()
        fxquant.trace(Chain(blocks), example_inputs=torch.randn(2, 4, 8, 8))
        seconds.append(time.perf_counter() - start)
        for each in (
            DropIdentities(),
            LiftFunctionals(),
            FoldBatchNorm(),
            AbsorbBatchNorm(),
            MarkFusedRelu(),
            InsertObservers(fxquant.Recipe.aciq()),
        ):
            start = time.perf_counter()
            each(gm)
            seconds.append(time.perf_counter() - start)
        per_node = sum(seconds[2:]) / num_nodes * 1000
        cells = [f"{value:.2f}" for value in [*seconds, sum(seconds[2:])]]
        rows.append([num_nodes, *cells, f"{per_node:.3f}"])
    columns = ["nodes", "trace", "with values", "drop", "lift", "fold", "absorb", "mark", "observe"]
    print(tabulate(rows, [*columns, "all passes", "ms a node"], disable_numparse=True))


if __name__ == "__main__":
    main()
