"""How what each call reads is spread before it is rounded, and the range that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.capture.naming import find_regions
from fxquant.display.figures import Histogram
from fxquant.graph.operations import module_of
from fxquant.graph.selection import call_name
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.reporting.drawn.weights import some_of
from fxquant.reporting.rows import is_listed, quantizers_before
from fxquant.reporting.running_copies import copy_to_run

_NUM_BINS = 64


def drawn_activations(
    model: nn.Module, batch: Any, forward: Forward | None = None
) -> Iterator[Histogram]:
    """Yield how what each call reads is spread before it is rounded, with the range kept.

    A copy of `model` runs on `batch`. Quantizers whose channels have ranges of their own, or whose
    ranges follow each batch, are left out.

    Args:
        model: a converted model; left as it is.
        batch: as in `fxquant.calibrate`; left as it is.
        forward: as in `fxquant.calibrate`.
    """
    copied = copy_to_run(model)
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].numel():
            seen.setdefault(module, some_of(args[0].detach()).cpu().double())

    for module in copied.modules():
        if isinstance(module, FakeQuantize) and module.axis is None:
            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        call_on_batch(copied, batch, "batch 0", forward)
    for gm in find_regions(copied).values():
        for node in gm.graph.nodes:
            if not is_listed(gm, node):
                continue
            for quantizer in dict.fromkeys(quantizers_before(gm, node)):
                read = _read(gm, quantizer, seen)
                if read is not None:
                    yield _of_values(call_name(gm, node), *read)


def _read(
    gm: fx.GraphModule, quantizer: fx.Node, seen: dict[nn.Module, Tensor]
) -> tuple[FakeQuantize, Tensor] | None:
    module = module_of(gm, quantizer)
    if not isinstance(module, FakeQuantize) or module not in seen:
        return None
    values = seen[module]
    return (module, values) if bool(values.isfinite().all()) else None


def _of_values(name: str, quantizer: FakeQuantize, values: Tensor) -> Histogram:
    affine = quantizer.affine
    low, high = ((affine.scale * steps).item() for steps in (affine.lowest, affine.highest))
    first, last = min(low, values.min().item()), max(high, values.max().item())
    counts = torch.histc(values, _NUM_BINS, first, last)
    edges = torch.linspace(first, last, _NUM_BINS + 1, dtype=torch.float64)
    bits = quantizer.spec.bits
    return Histogram(name, "inputs", tuple(edges.tolist()), tuple(counts.tolist()), low, high, bits)
