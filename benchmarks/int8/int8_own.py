"""This environment's contestants: the float network, and fxquant's on int8 kernels.

Variants: "eager" and "compiled" of the float network, batch norms folded by fxquant; "lowered" and
"lowered, compiled" of a quantized one. Eagerly, each takes the faster of both memory formats; the
compiler freezes the weights (`torch._inductor.config.freezing`) if it can.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import fxquant
from benchmarks.peers.serving import Images, Ready, Task, brief, faster_of, serve
from benchmarks.peers.torch_arrays import as_run, as_tensor
from fxquant.capture.naming import find_regions
from fxquant.passes import DropObservers

_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(task: Task) -> Ready:
    """Return one of the variants."""
    torch.set_num_threads(task.threads)
    model: nn.Module = torch.load(task.model, weights_only=False)
    way, _, compiled = task.variant.partition(", ")
    if way == "lowered":
        model = fxquant.lower(model, as_tensor(task.batches[0], torch.contiguous_format))
    else:
        model = fold(model)
    if "compiled" in (way, compiled):
        return compile_network(model, task.batches[0])
    ways = {
        name: as_run(_laid_out(model, memory_format), memory_format)
        for name, memory_format in _FORMATS.items()
    }
    return faster_of(ways, task.batches[0])


def fold(model: nn.Module) -> nn.Module:
    """Return a float copy with its batch norms folded."""
    folded = fxquant.prepare(model)
    for gm in find_regions(folded).values():
        DropObservers()(gm)
    return folded


def compile_network(model: nn.Module, batch: Images) -> Ready:
    """Return the network compiled with frozen weights, or without where that fails."""
    for note, freezing in (("frozen", True), ("not frozen", False)):
        torch._dynamo.reset()
        torch._inductor.config.freezing = freezing
        compiled: Callable[..., Any] = torch.compile(model)
        run = as_run(compiled)
        try:
            run(batch)
        except BackendCompilerFailed as error:
            failure = error
            print(f"{note}: {brief(error)}", file=sys.stderr)
        else:
            return Ready(run, note)
    raise failure


def _laid_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    copied: Any = copy.deepcopy(model)
    return copied.to(memory_format=memory_format)  # type: ignore[no-any-return]


if __name__ == "__main__":
    serve(prepare)
