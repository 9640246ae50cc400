"""Turn functional layers whose parameters are attributes into modules.

Before:  w = self.weight; b = self.bias; y = F.conv2d(x, w, b, 2, 1)
After:   y = self.conv2d(x)      # Conv2d with the same parameters

So that all other passes need to know modules only. Calls that share parameters and options share
one module. It takes the place of what holds nothing but its parameters; else it stands in there, or
beside a module that is called too. Where a padding is computed from sizes, zeros are put on before
the layer. Parameters that are computed (`F.conv2d(x, self.weight * x.mean())`) stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph.operation_table import is_size
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, attribute_of, free_place
from fxquant.modules.batchnorm import FunctionalBatchNorm
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_CONV = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1,
    "groups": 1,
}  # fmt: skip
_TRANSPOSED = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "output_padding": 0,
    "groups": 1, "dilation": 1,
}  # fmt: skip
_LINEAR = {"input": None, "weight": None, "bias": None}
_BATCHNORM = {
    "input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None,
    "training": False, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip


def _conv(kind: type[nn.Module], transposed: bool) -> Callable[[dict[str, Any]], nn.Module]:
    def make(arguments: dict[str, Any]) -> nn.Module:
        weight, bias = arguments.pop("weight"), arguments.pop("bias")
        groups, (first, second) = arguments["groups"], weight.shape[:2]
        channels = (first, second * groups) if transposed else (second * groups, first)
        return _module(
            kind(
                *channels,
                tuple(weight.shape[2:]),
                bias=bias is not None,
                device="meta",
                **arguments,
            ),
            weight=weight,
            bias=bias,
        )

    return make


def _linear(arguments: dict[str, Any]) -> nn.Module:
    weight, bias = arguments["weight"], arguments["bias"]
    return _module(
        nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"),
        weight=weight,
        bias=bias,
    )


def _batchnorm(arguments: dict[str, Any]) -> nn.Module:
    mean, variance = arguments["running_mean"], arguments["running_var"]
    module = FunctionalBatchNorm(len(mean), eps=arguments["eps"], affine=False)
    module.running_mean, module.running_var = mean, variance
    module.num_batches_tracked = None
    return _module(module, weight=arguments["weight"], bias=arguments["bias"])


def _module(module: nn.Module, **parameters: Tensor | None) -> nn.Module:
    for name, tensor in parameters.items():
        if tensor is not None and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, name, tensor)
    return module.eval()


_DIMENSIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_LIFTS: dict[Any, tuple[dict[str, Any], Callable[[dict[str, Any]], nn.Module]]] = {
    F.conv1d: (_CONV, _conv(nn.Conv1d, False)),
    F.conv2d: (_CONV, _conv(nn.Conv2d, False)),
    F.conv3d: (_CONV, _conv(nn.Conv3d, False)),
    F.conv_transpose1d: (_TRANSPOSED, _conv(nn.ConvTranspose1d, True)),
    F.conv_transpose2d: (_TRANSPOSED, _conv(nn.ConvTranspose2d, True)),
    F.conv_transpose3d: (_TRANSPOSED, _conv(nn.ConvTranspose3d, True)),
    F.linear: (_LINEAR, _linear),
    F.batch_norm: (_BATCHNORM, _batchnorm),
}


@dataclass(frozen=True, eq=False)
class LiftFunctionals(Pass):
    """Turn functional layers whose parameters are attributes into modules."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each call; refuse those whose parameters or options are computed."""
        names: dict[Any, str] = {}
        read: list[fx.Node] = []
        submodules = Submodules(gm)
        for node in list(gm.graph.nodes):
            if node.op != "call_function" or node.target not in _LIFTS:
                continue
            signature, make = _LIFTS[node.target]
            given = {**signature, **dict(zip(signature, node.args, strict=False)), **node.kwargs}
            source = given.pop("input")
            zeros = _computed_padding(gm, node, given)
            if zeros is not None:
                given["padding"] = 0
            reason = _why_not_liftable(gm, node, given)
            if reason is not None:
                refuse(node, "left in float", reason)
                continue
            read += [each for each in node.all_input_nodes if each.op == "get_attr"]
            key = (node.target, *[_identity(value) for value in given.values()])
            if key not in names:
                names[key] = _name(gm, node, given)
                submodules.put(names[key], make(_resolve(gm, given)))
            with gm.graph.inserting_before(node):
                if zeros is not None:
                    source = gm.graph.call_function(F.pad, (source, zeros))
                lifted = gm.graph.call_module(names[key], (source,))
            lifted.meta.update(node.meta)
            node.replace_all_uses_with(lifted)
            gm.graph.erase_node(node)
        submodules.erase_unread(read)
        return bool(names)


def _computed_padding(gm: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> list[Any] | None:
    """Return the zeros on each side, as `F.pad` takes them, if sizes decide; None if they do not.

    Of transposed convolutions the padding is another thing.
    """
    padding = given.get("padding")
    if node.target not in _DIMENSIONS or _is_constant(padding):
        return None
    each = padding if isinstance(padding, (tuple, list)) else [padding] * _DIMENSIONS[node.target]
    if not all(isinstance(size, int) or _is_number(size) for size in each):
        return None
    return [size for size in reversed(each) for _ in range(2)]


def _is_number(value: Any) -> bool:
    """Say whether a node computes one number of a shape, not several."""
    if not isinstance(value, fx.Node) or not is_size(value):
        return False
    if value.target is operator.getitem:
        return not isinstance(value.args[1], slice)
    return value.target is not getattr and (value.target != "size" or len(value.args) > 1)


def _identity(value: Any) -> str:
    return str(value.target) if isinstance(value, fx.Node) else repr(value)


def _why_not_liftable(gm: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> str | None:
    computed = [key for key, value in given.items() if not _is_constant(value)]
    if computed:
        return f"{' and '.join(computed)} computed in the graph"
    if given.get("training") or ("running_mean" in given and given["running_mean"] is None):
        return "it normalizes by each batch's own statistics"
    if node.target is F.linear and attribute_of(gm, given["weight"]).dim() != 2:
        return "its weight is a vector"
    return None


def _is_constant(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return value.op == "get_attr"
    if isinstance(value, (tuple, list)):
        return not any(isinstance(item, fx.Node) for item in value)
    return True


def _resolve(gm: fx.GraphModule, given: dict[str, Any]) -> dict[str, Any]:
    return {
        key: attribute_of(gm, value) if isinstance(value, fx.Node) else value
        for key, value in given.items()
    }


def _name(gm: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> str:
    """Return a name for the module: that of what holds its parameters alone, else one in there."""
    nodes = [value for value in given.values() if isinstance(value, fx.Node)]
    owner = str(nodes[0].target).rpartition(".")[0] if nodes else ""
    if owner and _holds_nothing_else(gm, owner, node, {str(each.target) for each in nodes}):
        return owner
    function = getattr(node.target, "__name__", "layer")
    return free_place(gm, f"{owner}.{function}".lstrip("."))


def _holds_nothing_else(gm: fx.GraphModule, owner: str, call: fx.Node, targets: set[str]) -> bool:
    """Say whether `owner` is what tracing left of a module: what `call` alone reads."""
    holder = gm.get_submodule(owner)
    held = {f"{owner}.{name}" for name in (*holder._parameters, *holder._buffers)}
    reads = [each for each in gm.graph.find_nodes(op="get_attr") if str(each.target) in targets]
    is_alone = all(set(each.users) == {call} for each in reads)
    return is_alone and type(holder) is nn.Module and not holder._modules and held == targets
