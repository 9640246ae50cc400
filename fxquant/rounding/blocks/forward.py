"""What a block computes with other weights and another rounding of activations than its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fxquant.graph.mutations import is_inplace, read_instead, run_out_of_place
from fxquant.graph.operations import module_of
from fxquant.modules.layers import as_layer, channel_axis
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import along_axis
from fxquant.numerics.containers import map_leaves
from fxquant.numerics.decibels import sqnr
from fxquant.rounding.blocks.find import Block
from fxquant.rounding.blocks.learned_scale import Quantizer
from fxquant.rounding.blocks.region import Path
from fxquant.rounding.blocks.samples import Batch
from fxquant.rounding.blocks.windows import Windows
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
        self._sizes: dict[QuantizedLayer, Tensor] | None = None

    def __call__(
        self,
        path: Path,
        x: Tensor,
        weights: Mapping[QuantizedLayer, Tensor],
        rounded: Round,
        biases: Mapping[QuantizedLayer, Tensor] = MappingProxyType({}),
        context: Sequence[Any] = (),
    ) -> Tensor:
        """Return the value of the path's exit.

        Args:
            path: which way through the block.
            x: the value of its entry; in bfloat16, layers compute in that.
            weights: of each quantized layer, in its shape.
            rounded: what stands in for the quantizers.
            biases: of quantized layers; without one a layer has the float layer's.
            context: the values of the path's context.
        """
        values: dict[fx.Node, Any] = dict(zip(path.context, context, strict=True))
        values[path.entry] = x
        for node in path.nodes:
            instead = self._instead.get(node, {})

            def read(each: fx.Node, instead: dict[fx.Node, fx.Node] = instead) -> Any:
                return values[instead.get(each, each)]

            args: Any = fx.node.map_arg(node.args, read)
            kwargs: Any = fx.node.map_arg(node.kwargs, read)
            module = self._modules[node]
            if isinstance(module, QuantizedLayer):
                values[node] = self._run_layer(
                    node, weights[module], biases.get(module), args, kwargs
                )
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

    def takes_any_number(self, path: Path, x: Tensor, context: Sequence[Any] = ()) -> bool:
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
            once, twice = (
                self(path, each, weights, _as_it_is, context=beside)
                for each, beside in ((x, context), (_twice(x), [*map(_twice, context)]))
            )
        except Exception:  # running the caller's code, which may raise anything
            return False
        wanted = torch.cat([once, once])
        return wanted.shape == twice.shape and sqnr(wanted, twice) > _MIN_SAME_SQNR

    def sqnr_in(self, dtype: torch.dtype, batch: Batch) -> float:
        """Return how exactly the float block computes in another dtype, in dB; -∞ if not at all."""
        weights = self._float_weights(batch.path)
        try:
            found, expected = (
                self(
                    batch.path,
                    batch.floats.to(each),
                    weights,
                    _as_it_is,
                    context=batch.beside(each),
                )
                for each in (dtype, batch.floats.dtype)
            )
        except Exception:  # running the caller's code, which may raise anything
            return -math.inf
        return sqnr(expected, found.float()) if found.dtype == dtype else -math.inf

    def windows(self, path: Path, x: Tensor, target: Tensor) -> Windows | None:
        """Return how images may be cut up; None where the block needs them whole.

        Args:
            path: which way through the block.
            x: the float value of its entry, one sample or more.
            target: that of its exit.
        """
        windows = Windows.of(x, target, [self._modules[node] for node in path.nodes])
        if windows is None or path.context:
            return None
        weights = self._float_weights(path)
        for place in windows.corners():
            cut = windows.at(*place)
            try:
                found = self(path, cut.of_inputs(x), weights, _as_it_is)
            except Exception:  # running the caller's code, which may raise anything
                return None
            if found.dim() != 4 or not windows.is_right(
                cut.of_outputs(found), cut.of_targets(target)
            ):
                return None
        return windows

    def output_sizes(self, batch: Batch) -> dict[QuantizedLayer, Tensor]:
        """Return the root of the mean square of each layer's output channels in float: (out,)."""
        found: dict[QuantizedLayer, Tensor] = {}
        self._sizes = found
        weights = self._float_weights(batch.path)
        self(batch.path, batch.floats, weights, _as_it_is, context=batch.context)
        self._sizes = None
        return found

    def _float_weights(self, path: Path) -> dict[QuantizedLayer, Tensor]:
        return {
            module: as_layer(self._reference.get_submodule(str(node.target))).weight.detach()
            for node in path.nodes
            if isinstance(module := self._modules[node], QuantizedLayer)
        }

    def _run_layer(
        self, node: fx.Node, weight: Tensor, bias: Tensor | None, args: Any, kwargs: Any
    ) -> Any:
        layer: Any = self._reference.get_submodule(str(node.target))
        given = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        is_narrow = given.dtype == torch.bfloat16 != layer.weight.dtype
        dtype = torch.bfloat16 if is_narrow else layer.weight.dtype
        if is_narrow and _is_slow_in_bfloat16(layer):
            dtype = torch.float32
            args, kwargs = map_leaves((args, kwargs), lambda each: _of_dtype(each, dtype))
        tensors = {"weight": weight.to(dtype)}
        if layer.bias is not None:
            tensors["bias"] = (layer.bias.detach() if bias is None else bias).to(dtype)
        result = functional_call(layer, tensors, args, kwargs)
        if bias is not None and layer.bias is None:
            axis = result.dim() + channel_axis(layer)
            result = result + along_axis(bias.to(dtype), axis, result.dim())
        if self._sizes is not None:
            quantized: Any = self._modules[node]
            channels = result.detach().float().movedim(channel_axis(layer), 0)
            power = channels.square().reshape(len(channels), -1).mean(dim=1)
            self._sizes[quantized] = power.sqrt()
        return result.to(given.dtype) if is_narrow else result

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


def _is_slow_in_bfloat16(layer: nn.Module) -> bool:
    """Say whether PyTorch's gradient by the layer's input takes many times float32's.

    It does on CPUs for depthwise convolutions with a stride.
    """
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and layer.groups > 1
        and any(step > 1 for step in layer.stride)
    )


def _of_dtype(value: Any, dtype: torch.dtype) -> Any:
    is_floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_floating else value


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value
