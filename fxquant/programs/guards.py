"""Whether all is still as it was when a program was made."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxquant.int8 import Int8Layer, Int8Module, prepacking


class Guards:
    """Looks at what a program took for granted: modules, tensors, hooks, the graph's own code."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._type, self._forward = type(gm), type(gm).forward
        """Another one as soon as the graph is compiled anew."""
        self._same: dict[tuple[int, str], tuple[dict[str, Any], str, object]] = {}
        self._numbers: list[tuple[Int8Module, tuple[object, ...]]] = []
        self._times_renumbered = Int8Module.times_renumbered
        self._empty: dict[int, Mapping[Any, Any]] = {}
        self._addresses: list[tuple[Tensor, int]] = []
        self._versions: dict[int, tuple[Tensor, int]] = {}
        self._weights = prepacking.Watch()
        self._columns: tuple[Any, ...] | None = None

    def hold(self) -> bool:
        """Say whether nothing has changed."""
        if self._columns is None:
            tensors, addresses = zip(*self._addresses, strict=True) if self._addresses else ((), ())
            written, versions = (
                zip(*self._versions.values(), strict=True) if self._versions else ((), ())
            )
            columns = (*zip(*self._same.values(), strict=True), tensors, [*addresses])
            self._columns = (*columns, written, [*versions])
        mappings, names, values, tensors, addresses, written, versions = self._columns
        return (  # all loops are C's
            self._type.forward is self._forward
            and all(map(operator.is_, map(dict.get, mappings, names), values))
            and list(map(Tensor.data_ptr, tensors)) == addresses
            and list(map(_version, written)) == versions
            and not any(self._empty.values())
            and self._weights.all_as_before()
            and (Int8Module.times_renumbered == self._times_renumbered or self._have_numbers())
        )

    def _have_numbers(self) -> bool:
        """Say whether it was other modules that took other numbers."""
        times = Int8Module.times_renumbered
        are_same = all(_numbers_of(module) == numbers for module, numbers in self._numbers)
        if are_same:
            self._times_renumbered = times
        return are_same

    def same(self, mapping: dict[str, Any], name: str) -> None:
        """Require that `mapping` has the same object under a name."""
        self._same[id(mapping), name] = (mapping, name, mapping.get(name))

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

    def contents(self, module: nn.Module) -> None:
        """Require that a module, and those in it, keep all that they compute with."""
        for each in module.modules():
            self.no_hooks(each)
            own = vars(each)
            for name in ("forward", *(name for name in own if not name.startswith("_"))):
                self.same(own, name)
            for mapping in (each._parameters, each._buffers, each._modules):
                for name, value in mapping.items():
                    self.same(mapping, name)
                    if isinstance(value, Tensor):
                        self._address(value)

    def layer(self, layer: Int8Layer) -> None:
        """Require that a layer computes what it did, and that nobody watches it."""
        self.numbers(layer)
        for name in ("weight_integers", "weight_scale", "bias"):
            self.same(layer._buffers, name)
        for tensor in (layer.weight_scale, layer.bias):
            if tensor is not None:
                self._address(tensor)
        self._weights.add(layer.weight_integers)
        self.no_hooks(layer)

    def numbers(self, module: Int8Module) -> None:
        """Require that a module keeps its scales and zero-points."""
        self._numbers.append((module, _numbers_of(module)))

    def no_hooks(self, module: nn.Module) -> None:
        """Require that calling a module calls nothing but its `forward`."""
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            self._empty[id(hooks)] = hooks

    def values(self, tensors: Sequence[Tensor]) -> bool:
        """Require that nobody writes to tensors; say whether that can be seen."""
        if any(each.is_inference() for each in tensors):
            return False
        self._versions |= {id(each): (each, each._version) for each in tensors}
        return True

    def _address(self, tensor: Tensor) -> None:
        self._addresses.append((tensor, tensor.data_ptr()))


_version = operator.attrgetter("_version")


def _numbers_of(module: Int8Module) -> tuple[object, ...]:
    return module.input, module.other, module.result
