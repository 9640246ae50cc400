"""Whether all is still as it was when a program was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from fxquant.int8 import Int8Layer, prepacking


class Guards:
    """Looks at what a program took for granted: modules, tensors, hooks, the graph's own code."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._same: list[tuple[Mapping[str, Any], str, Any]] = []
        self._empty: dict[int, Mapping[Any, Any]] = {}
        self._addresses: list[tuple[Tensor, int]] = []
        self._weights: list[Callable[[], bool]] = []
        self.same(vars(type(gm)), "forward")  # another one as soon as the graph is compiled anew

    def hold(self) -> bool:
        """Say whether nothing has changed."""
        for mapping, name, value in self._same:
            if mapping.get(name) is not value:
                return False
        for tensor, address in self._addresses:
            if tensor.data_ptr() != address:
                return False
        return not any(self._empty.values()) and all(is_same() for is_same in self._weights)

    def same(self, mapping: Mapping[str, Any], name: str) -> None:
        """Require that `mapping` has the same object under a name."""
        self._same.append((mapping, name, mapping.get(name)))

    def module(self, gm: nn.Module, target: str) -> nn.Module:
        """Require that a graph's target stays the module that it is; return it."""
        owner: nn.Module = gm
        for part in target.split("."):
            self.same(owner._modules, part)
            owner = owner.get_submodule(part)
        return owner

    def tensor(self, gm: nn.Module, target: str) -> None:
        """Require that an attribute that a graph reads stays what it is, and where it is."""
        path, _, name = target.rpartition(".")
        owner = self.module(gm, path) if path else gm
        for mapping in (owner._parameters, owner._buffers, vars(owner)):
            if name in mapping:
                self.same(mapping, name)
                value: object = mapping[name]
                if isinstance(value, Tensor):
                    self._address(value)

    def layer(self, layer: Int8Layer) -> None:
        """Require that a layer computes what it did, and that nobody watches it."""
        for name in ("input", "other", "result", "activation", "geometry"):
            self.same(vars(layer), name)
        for name in ("weight_integers", "weight_scale", "bias"):
            self.same(layer._buffers, name)
        for tensor in (layer.weight_scale, layer.bias):
            if tensor is not None:
                self._address(tensor)
        self._weights.append(prepacking.watched(layer.weight_integers))
        self.no_hooks(layer)

    def no_hooks(self, module: nn.Module) -> None:
        """Require that calling a module calls nothing but its `forward`."""
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            self._empty[id(hooks)] = hooks

    def _address(self, tensor: Tensor) -> None:
        self._addresses.append((tensor, tensor.data_ptr()))
