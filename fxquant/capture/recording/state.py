"""What a forward leaves behind in its modules: attributes, what is in them, contents of buffers.

self.features = x                   # harmless in a whole model: the next call writes it anew
self.calls += 1                     # state: a graph has none
self.total.add_(x.mean())           # state
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Set
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.capture.attributes import KEY

_CONTAINERS = (dict, list, set)
_PLAIN = (type(None), bool, int, float, str)


class State:
    """What a model holds at one moment. Running it may change that; `restore` undoes it.

    torchvision's MultiScaleRoIAlign keeps scales that it computed from its first input: in a trace
    that would be a proxy, which the next call would take for a number.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = {
            name: (vars(module), _contents(vars(module)))
            for name, module in model.named_modules()
            if not (isinstance(module, torch.jit.ScriptModule) or name.split(".")[0] == KEY)
        }
        self._buffers = [
            (name, buffer, buffer._version, buffer.detach().clone())
            for name, buffer in model.named_buffers()
            if not buffer.is_inference()
        ]

    def written(self, but: Set[str] = frozenset()) -> dict[str, Any]:
        """Return what is another than before, by name: attributes with what they are now.

        Args:
            but: names of attributes of the model itself to leave out.
        """
        found: dict[str, Any] = {}
        for path, (attributes, contents) in self._attributes.items():
            for name, value in attributes.items():
                if (path or name not in but) and not _is_as_before(value, contents.get(name)):
                    found[f"{path}.{name}".lstrip(".")] = _copied(value)
        changed = (each for each in self._buffers if each[1]._version != each[2])
        return found | {name: buffer for name, buffer, *_ in changed}

    def restore(self) -> None:
        """Give the model back what it held."""
        for attributes, contents in self._attributes.values():
            attributes.clear()
            for name, (value, inside) in contents.items():
                if isinstance(value, dict):
                    ours = {KEY: value[KEY]} if KEY in value else {}  # fxquant's own notes
                    value.clear()
                    value.update({**inside, **ours})
                elif isinstance(value, set):
                    value.clear()
                    value.update(inside)
                elif isinstance(value, list):
                    value[:] = inside
                attributes[name] = value
        for _, buffer, version, value in self._buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


@contextlib.contextmanager
def left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Undo what running the model does to its attributes and buffers."""
    state = State(model)
    try:
        yield
    finally:
        state.restore()


def changes_on(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield names of what one more call changed again: counters, lists that grow, tensors."""
    for name, value in after.items():
        if isinstance(value, Tensor) or _plain(value) != _plain(before.get(name)):
            yield name


def _plain(value: Any) -> Any:
    """Return what can be compared of a value: numbers, and how many things are in it."""
    if isinstance(value, _CONTAINERS):
        return len(value)
    return value if isinstance(value, _PLAIN) else None


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return each attribute with a copy of what is in it, where it is a container."""
    return {
        name: (value, _copied(value) if isinstance(value, _CONTAINERS) else None)
        for name, value in attributes.items()
    }


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, _CONTAINERS) else value


def _is_as_before(value: Any, before: tuple[Any, Any] | None) -> bool:
    if before is None or not _are_same(value, before[0]):
        return False
    inside = before[1]
    if isinstance(value, dict):
        return value.keys() == inside.keys() and all(_are_same(value[k], inside[k]) for k in value)
    if isinstance(value, list):
        return len(value) == len(inside) and all(map(_are_same, value, inside))
    return not isinstance(value, set) or value == inside


def _are_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and one == other)
