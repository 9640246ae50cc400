"""Turn functional layers whose parameters are attributes into modules.

Before:  w = self.weight; b = self.bias; y = F.conv2d(x, w, b, 2, 1)
After:   y = self.conv2d(x)      # Conv2d with the same parameters

So that all other passes need to know modules only. Calls that share parameters and options share
one module. Parameters that are computed (`F.conv2d(x, self.weight * 2)`) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, free_name
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
        submodules = Submodules(gm)
        for node in list(gm.graph.nodes):
            if node.op != "call_function" or node.target not in _LIFTS:
                continue
            signature, make = _LIFTS[node.target]
            given = {**signature, **dict(zip(signature, node.args, strict=False)), **node.kwargs}
            given.pop("input")
            reason = _why_not_liftable(gm, node, given)
            if reason is not None:
                refuse(node, "left in float", reason)
                continue
            key = (node.target, *[_identity(value) for value in given.values()])
            if key not in names:
                names[key] = _name(gm, node, given)
                submodules.put(names[key], make(_resolve(gm, given)))
            with gm.graph.inserting_before(node):
                source = node.args[0] if node.args else node.kwargs["input"]
                lifted = gm.graph.call_module(names[key], (source,))
            lifted.meta.update(node.meta)
            node.replace_all_uses_with(lifted)
            gm.graph.erase_node(node)
        if names:
            _erase_unused_attributes(gm, submodules)
        return bool(names)


def _identity(value: Any) -> str:
    return str(value.target) if isinstance(value, fx.Node) else repr(value)


def _why_not_liftable(gm: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> str | None:
    computed = [key for key, value in given.items() if not _is_constant(value)]
    if computed:
        return f"{' and '.join(computed)} computed in the graph"
    if given.get("training") or ("running_mean" in given and given["running_mean"] is None):
        return "it normalizes by each batch's own statistics"
    if node.target is F.linear and _attribute(gm, str(given["weight"].target)).dim() != 2:
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
        key: _attribute(gm, str(value.target)) if isinstance(value, fx.Node) else value
        for key, value in given.items()
    }


def _attribute(gm: fx.GraphModule, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(gm.get_submodule(owner), name)


def _name(gm: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> str:
    """Return a name for the module: the function's, in the module that owns its parameters."""
    nodes = [value for value in given.values() if isinstance(value, fx.Node)]
    owner = str(nodes[0].target).rpartition(".")[0] if nodes else ""
    function = getattr(node.target, "__name__", "layer")
    return free_name(gm, f"{owner}.{function}".lstrip("."))


def _erase_unused_attributes(gm: fx.GraphModule, submodules: Submodules) -> None:
    erased = set()
    for node in reversed(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)
            erased.add(str(node.target))
    still_read = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    for path in erased - still_read:
        if path.rpartition(".")[0] not in called:
            submodules.drop_attribute(path)
