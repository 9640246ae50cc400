"""Every pass, alone, on a graph in the state that it starts from; and what it must leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxquant import Pass, Recipe, Reconstruction, passes
from fxquant.int8.onednn import why_unavailable

AGAIN = {"ReconstructBlocks", "ReconstructRounding", "TuneBatchNorm"}
"""What learns goes on from where the first run came to."""
Call = Callable[[nn.Module], Any]


def passes_in_order(
    gm: fx.GraphModule, batches: Sequence[tuple[Any, ...]], recipe: Recipe, call: Call
) -> Iterator[tuple[Pass, fx.GraphModule]]:
    """Yield all passes, each with a graph in a state that it starts from; the caller runs it.

    Args:
        gm: traced, float; goes through most of them.
        batches: arguments that passes learn from.
        recipe: what is observed and rounded how.
        call: calls a graph with what it is calibrated on.
    """
    each: Pass
    for each in (
        passes.DropIdentities(), passes.FoldConstants(), passes.LiftProducts(),
        passes.LiftFunctionals(), passes.FoldBatchNorm(), passes.AbsorbBatchNorm(),
        passes.EqualizeLayers(), passes.AbsorbBiases(), passes.ExpandAttention(),
        passes.ExpandSilu(), passes.ClampBeforePool(), passes.MarkFusedRelu(),
        passes.InsertObservers(recipe),
    ):  # fmt: skip
        yield each, gm
    call(gm)
    yield passes.SmoothInputs(recipe, batches), gm
    reference = copy.deepcopy(gm)
    yield passes.DropObservers(), reference
    options = Reconstruction(steps=5, samples=8)
    for each in (
        passes.KeepFloats(), passes.ChooseRanges(), passes.QuantizeWeights(recipe),
        passes.ReconstructRounding(reference, batches, options), passes.CorrectBias(reference),
        passes.ReconstructBlocks(reference, batches, options),
        passes.TuneBatchNorm(reference, batches),
    ):  # fmt: skip
        yield each, gm
    yield passes.CorrectWeights(reference), sibling(gm)
    standard = sibling(gm)
    for each in (passes.RepeatQuantizers(), passes.ToQdq()):
        yield each, standard
    yield passes.ClampFloats(), sibling(standard)
    yield passes.FitXnnpack(), sibling(standard)
    yield passes.ClampIntegers(), standard
    if why_unavailable() is None:
        for each in (
            passes.SplitQuantizers(), passes.SinkClamps(), passes.SinkDequantize(),
            passes.LowerLayers(), passes.LowerAdditions(), passes.LowerAverages(),
            passes.RequantizeIntegers(), passes.ReuseOperands(),
        ):  # fmt: skip
            yield each, gm


def sibling(gm: fx.GraphModule) -> fx.GraphModule:
    """Return another graph over the very modules of `gm`."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    made = fx.GraphModule(gm, graph)
    for name, module in gm.named_children():  # with what no node names: the journal
        made._modules[name] = module
    return made


def held_by(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what a model holds: modules and tensors by identity, the tensors' values, and more."""
    modules, tensors = (
        dict(model.named_modules()),
        [*model.named_parameters(), *model.named_buffers()],
    )
    return {
        "modules": {name: (id(each), each.training) for name, each in modules.items()},
        "attributes": {name: _plain(vars(each)) for name, each in modules.items()},
        "hooks": {
            name: (len(each._forward_hooks), len(each._forward_pre_hooks))
            for name, each in modules.items()
        },
        "tensors": {name: (id(each), each.requires_grad) for name, each in tensors},
        "values": {name: each.detach().clone() for name, each in tensors},
    }


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (bool, int, float, str, tuple, type(None))
    return {name: each if isinstance(each, kinds) else None for name, each in attributes.items()}


def find_changes(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> str | None:
    """Return what of a model is not as it was, in words; None if all is."""
    for kind, held in before.items():
        names = [name for name, each in held.items() if not is_equal(each, now[kind].get(name))]
        names += [name for name in now[kind] if name not in held]
        if names:
            return f"other {kind}: {', '.join(names[:3])}"
    return None


def is_equal(one: Any, other: Any) -> bool:
    """Say whether two nests of tensors and other values are the same, to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool(one == other or (one != one and other != other))
