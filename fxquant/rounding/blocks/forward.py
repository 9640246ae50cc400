"""What a block computes with other weights and another rounding of activations than its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fxquant.graph.mutations import is_inplace, read_instead, run_out_of_place
from fxquant.graph.operations import module_of
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.rounding.blocks.find import Block, Path
from fxquant.rounding.blocks.learned_scale import Quantizer
from fxquant.streaming.running import laid_out_for

_MIN_SAME_SQNR = 40.0  # dB; sums in another order agree to 60 in float16

Round = Callable[[Quantizer, Tensor, bool], Tensor]
"""(quantizer, tensor, whether that is the block's input) -> the rounded tensor."""


def _as_it_is(quantizer: Quantizer, value: Tensor, is_input: bool) -> Tensor:
    return value


class BlockForward:
    """A block as a function; autograd sees through it.

    Args:
        block: of `gm`.
        gm: the quantized graph.
        reference: the float one, whose layers run with the weights they are given.
    """

    def __init__(self, block: Block, gm: fx.GraphModule, reference: fx.GraphModule) -> None:
        self._gm, self._reference = gm, reference
        self._instead = read_instead(gm)
        nodes = [node for path in block.paths for node in path.nodes]
        self._modules = {node: module_of(gm, node) for node in nodes}
        self._inplace = {node for node in nodes if is_inplace(gm, node)}

    def __call__(
        self, path: Path, x: Tensor, weights: Mapping[QuantizedLayer, Tensor], rounded: Round
    ) -> Tensor:
        """Return the value of the path's exit.

        Args:
            path: which way through the block.
            x: the value of its entry.
            weights: of each quantized layer, in its shape.
            rounded: what stands in for the quantizers.
        """
        values: dict[fx.Node, Any] = {path.entry: x}
        for node in path.nodes:
            instead = self._instead.get(node, {})

            def read(each: fx.Node, instead: dict[fx.Node, fx.Node] = instead) -> Any:
                return values[instead.get(each, each)]

            args: Any = fx.node.map_arg(node.args, read)
            kwargs: Any = fx.node.map_arg(node.kwargs, read)
            module = self._modules[node]
            if isinstance(module, QuantizedLayer):
                values[node] = self._run_layer(node, weights[module], args, kwargs)
            elif isinstance(module, Quantizer):
                (source,) = node.all_input_nodes
                is_input = instead.get(source, source) is path.entry
                values[node] = rounded(module, args[0], is_input)
            elif as_own(module).watches:  # it has seen what it is to see
                values[node] = args[0]
            else:
                values[node] = self._run(node, module, args, kwargs)
        result = values[path.exit]
        assert isinstance(result, Tensor)
        return result

    def takes_any_number(self, path: Path, x: Tensor) -> bool:
        """Say whether samples go through the path one by one: twice as many give the same twice.

        They do not where it reads a tensor for one batch, as a recurrent cell its first state does,
        or reshapes to numbers that are written in it.
        """
        weights = {
            module: module.weight.float()
            for module in self._modules.values()
            if isinstance(module, QuantizedLayer)
        }
        try:
            once, twice = (self(path, each, weights, _as_it_is) for each in (x, torch.cat([x, x])))
        except Exception:  # running the caller's code, which may raise anything
            return False
        wanted = torch.cat([once, once])
        return wanted.shape == twice.shape and sqnr(wanted, twice) > _MIN_SAME_SQNR

    def _run_layer(self, node: fx.Node, weight: Tensor, args: Any, kwargs: Any) -> Any:
        layer: Any = self._reference.get_submodule(str(node.target))
        tensors = {"weight": weight.to(layer.weight.dtype)}
        if layer.bias is not None:
            tensors["bias"] = layer.bias.detach()
        return functional_call(layer, tensors, args, kwargs)

    def _run(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._gm.get_submodule(owner), name)
        function: Any = node.target if module is None else module
        if node.op == "call_method":
            function = getattr(type(args[0]), str(node.target))
        args, kwargs = laid_out_for(function, args, kwargs)
        if node in self._inplace:
            return run_out_of_place(node, function, args, kwargs)
        return function(*args, **kwargs)
