"""How often each integer stands in each quantized weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxquant.capture.naming import find_regions
from fxquant.display.figures import Histogram
from fxquant.graph.operations import module_of
from fxquant.graph.selection import call_name
from fxquant.modules.quantized_layer import QuantizedLayer

_MOST_VALUES = 1 << 18  # of one tensor: evenly spread ones stand for all


def drawn_weights(model: nn.Module) -> Iterator[Histogram]:
    """Yield how often each integer stands in each quantized weight, in the order of the calls."""
    for gm in find_regions(model).values():
        for node in gm.graph.nodes:
            module = module_of(gm, node)
            if isinstance(module, QuantizedLayer):
                yield _of_integers(call_name(gm, node), module)


def _of_integers(name: str, layer: QuantizedLayer) -> Histogram:
    grid = layer.weight_affine.grid
    integers = some_of(layer.weight_integers).to(torch.int64) - grid.quant_min
    counts = torch.bincount(integers, minlength=grid.quant_max - grid.quant_min + 1)
    edges = [number - 0.5 for number in range(grid.quant_min, grid.quant_max + 2)]
    bits = layer.weight_spec.bits
    return Histogram(name, "weights", tuple(edges), tuple(counts.tolist()), None, None, bits, True)


def some_of(values: Tensor) -> Tensor:
    """Return at most about 262,144 values of a tensor, evenly spread, always the same ones."""
    flat = values.reshape(-1)
    stride = math.ceil(flat.numel() / _MOST_VALUES) or 1
    return flat[:: stride if stride == 1 else stride | 1]  # odd: else one column of an even width
