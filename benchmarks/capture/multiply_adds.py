"""Multiply-adds of float models and of quantized layers, counted as they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass
class MultiplyAdds:
    """Those of one run of a float model."""

    layers: int = 0
    """Of convolutions and of products with a weight, as modules or as functions."""
    products: int = 0
    """Of tensors that are both computed, as in attention."""
    recurrent: int = 0
    """Of LSTM, GRU and RNN layers."""


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside of it, outside of recurrent layers."""

    def __init__(self, model: nn.Module, counted: MultiplyAdds) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted, self.is_paused = counted, False
        self.parameters = {_storage(each) for each in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None and not self.is_paused:
            count = formula(*args, **(kwargs or {}), out_val=output) // 2
            if self._is_layer(func.overloadpacket, args):
                self.counted.layers += count
            else:
                self.counted.products += count
        return output

    def _is_layer(self, operator: Any, args: Any) -> bool:
        if "attention" in str(operator):
            return False
        tensors = [each for each in args if isinstance(each, Tensor)]
        return operator not in _PRODUCTS or any(
            _storage(each) in self.parameters for each in tensors
        )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[MultiplyAdds]:
    """Count the multiply-adds of the calls of a float model."""
    counted, hooks = MultiplyAdds(), contextlib.ExitStack()
    mode = _Counting(model, counted)

    def pause(_module: nn.Module, _args: Any) -> None:
        mode.is_paused = True

    def add(module: nn.Module, args: Any, output: Any) -> None:
        mode.is_paused = False
        assert isinstance(module, nn.RNNBase)
        data = args[0].data if isinstance(args[0], nn.utils.rnn.PackedSequence) else args[0]
        weights = sum(each.numel() for each in module.parameters() if each.dim() == 2)
        counted.recurrent += weights * (data.numel() // data.shape[-1])

    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            hooks.callback(module.register_forward_pre_hook(pause).remove)
            hooks.callback(module.register_forward_hook(add).remove)
    with hooks, no_fast_path(), mode:
        yield counted


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Let `nn.MultiheadAttention` and its like run as modules and operators, none in one piece."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def of_call(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> int:
    """Return the multiply-adds of one call of a layer with integer weights."""
    weight: Any = layer.weight_integers
    is_transposed = bool(getattr(layer, "transposed", False))
    return int((args[0] if is_transposed else output).numel() * weight[0].numel())


@contextlib.contextmanager
def counting_calls(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, int]]:
    """Count the multiply-adds of the calls of each layer with integer weights."""
    counted = {layer: 0 for layer in layers}

    def add(layer: nn.Module, args: Any, output: Any) -> None:
        counted[layer] += of_call(layer, args, output)

    with contextlib.ExitStack() as hooks:
        for layer in counted:
            hooks.callback(layer.register_forward_hook(add).remove)
        yield counted
