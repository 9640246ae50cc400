"""What passes start from, so that one which finds none of it in a graph can say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph.journal import Journal
from fxquant.modules.own import OwnModule, Stage


@dataclass(frozen=True)
class StartingPoint:
    """What a graph must hold for a pass to have any work in it."""

    what: str
    """In words, as what is missing."""
    remedy: str
    is_in: Callable[[fx.GraphModule], bool]


def _has_readable_calls(gm: fx.GraphModule) -> bool:
    """Say whether a call is one of `torch.nn` or `torch`, as symbolic tracing leaves them."""
    aten = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
    functions = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    modules = [gm.get_submodule(str(node.target)) for node in gm.graph.find_nodes(op="call_module")]
    return (
        not functions
        or not all(isinstance(function, aten) for function in functions)
        or any(type(module).__module__.startswith("torch.nn.") for module in modules)
    )


def _is(*stages: Stage) -> Callable[[fx.GraphModule], bool]:
    """Return the question whether fxquant has brought a graph to one of `stages`."""

    def is_in(gm: fx.GraphModule) -> bool:
        return any(
            isinstance(module, Journal)
            or (isinstance(module, OwnModule) and module.stage in stages)
            for module in gm.modules()
        )

    return is_in


def _has_quantize_operators(gm: fx.GraphModule) -> bool:
    targets = (str(node.target) for node in gm.graph.nodes)
    return any(target.startswith("quantized_decomposed.") for target in targets)


TRACED = StartingPoint(
    "modules and functions of torch, but ATen operators alone",
    "give a graph that fxquant.trace(model) or torch.fx.symbolic_trace(model) made",
    _has_readable_calls,
)
OBSERVED = StartingPoint(
    "observers", "run InsertObservers, and calibrate", _is("prepared", "converted")
)
CONVERTED = StartingPoint(
    "quantized layers or fake-quantizers",
    "run ChooseRanges and QuantizeWeights first",
    _is("converted", "lowered"),
)
STANDARD = StartingPoint(
    "quantized_decomposed operators", "run ToQdq first", _has_quantize_operators
)
