"""A model on its way: the lines of its class, each run as soon as it is written.

What a line computes is there for the next to choose from, with its shape; a line that fails, or
whose values are no good, takes its step back.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.graphs.choices import Choices

T = TypeVar("T")
NAMES: dict[str, Any] = {
    "torch": torch, "nn": nn, "F": F, "math": math, "operator": operator,
    "weight_norm": weight_norm,
}  # fmt: skip
"""What lines may use."""
MOST_VALUES = 6000
_LARGEST = 1e3


class Impossible(Exception):
    """A step that cannot be made here: no value of the kind, or no good result."""


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Give batch norms statistics and parameters that are neither 0 nor 1."""
    for each in module.modules():
        if isinstance(each, _BatchNorm):
            tensors = (each.running_mean, each.running_var, each.weight, each.bias)
            ranges = ((-1.0, 1.0), (0.5, 2.0), (0.5, 1.5), (-1.0, 1.0))
            for tensor, (low, high) in zip(tensors, ranges, strict=True):
                if tensor is not None:
                    tensor.uniform_(low, high)


class Draft:
    """The parts and lines so far, and the values that they gave.

    Args:
        choices: what decides.
        inputs: by name.
    """

    def __init__(self, choices: Choices, inputs: dict[str, Tensor]) -> None:
        self.choices = choices
        self._inputs = inputs
        self.parts: list[str] = []
        """Lines of `__init__`."""
        self.lines: list[str] = []
        """Lines of `forward`."""
        self._number = 0
        self._env: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        self._module = nn.Module()
        self._module.eval()
        self.values = {name: x.clone() for name, x in self._inputs.items()}
        self._env = {**NAMES, "self": self._module, **self.values}

    # What steps ask.

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        if not options:
            raise Impossible
        return self.choices.pick(options)

    def one_in(self, number: int) -> bool:
        """Return True once in so many times."""
        return self.choices.one_in(number)

    def value(self, *dims: int, where: Callable[[Tensor], bool] | None = None) -> str:
        """Return the name of a floating-point tensor, each second time the last one.

        Args:
            dims: how many dimensions it may have; none: any but 0.
            where: what else it must be.
        """
        found = [
            name
            for name, x in reversed(self.values.items())
            if isinstance(x, Tensor)
            and x.is_floating_point()
            and (x.dim() in dims if dims else x.dim() > 0)
            and (where is None or where(x))
        ]
        if not found:
            raise Impossible
        return found[max(self.choices.below(2 * len(found)) - len(found), 0)]

    def of(self, name: str) -> Tensor:
        """Return the value of a name."""
        found = self.values[name]
        assert isinstance(found, Tensor)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Return its shape."""
        return tuple(self.of(name).shape)

    # What steps do.

    def part(self, kind: str, expression: str) -> str:
        """Add `self.kind… = expression` to `__init__`; return how `forward` names it."""
        name = f"self.{kind}{self._next()}"
        self.attribute(f"{name} = {expression}")
        return name

    def buffer(self, expression: str) -> str:
        """Add a buffer; return how `forward` names it."""
        name = f"buffer{self._next()}"
        self.attribute(f'self.register_buffer("{name}", {expression})')
        return f"self.{name}"

    def attribute(self, line: str) -> None:
        """Add a line to `__init__`."""
        self._run(line)
        self.parts.append(line)

    def let(self, expression: str) -> str:
        """Add `x… = expression` to `forward`; return the name."""
        name = f"x{self._next()}"
        self.line(f"{name} = {expression}")
        self.values[name] = self._env[name]
        return name

    def line(self, line: str) -> None:
        """Add a line to `forward`."""
        self._run(line)
        self.lines.append(line)
        for name in self.values:
            self.values[name] = self._env[name]

    def modules(self) -> list[str]:
        """Return the modules among the parts, by how `forward` names them."""
        return [f"self.{name}" for name, _ in reversed(list(self._module.named_children()))]

    def module(self, name: str) -> nn.Module:
        """Return a part by how `forward` names it."""
        return self._module.get_submodule(name.removeprefix("self."))

    def step(self, draw: Callable[[Draft], None]) -> bool:
        """Make a step, or take it back; say whether it was made."""
        before = (len(self.parts), len(self.lines), self._number)
        try:
            draw(self)
            self._check()
        except Impossible:
            self._undo(*before)
            return False
        return True

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _run(self, line: str) -> None:
        try:
            with torch.no_grad():
                exec(line, self._env)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise Impossible from error
        for module in self._module.children():
            if module.training:
                settle(module)
                module.eval()

    def _check(self) -> None:
        """Raise if a value is none to go on with."""
        for x in self.values.values():
            if isinstance(x, Tensor) and not (
                0 < x.numel() <= MOST_VALUES
                and (not x.is_floating_point() or bool(x.abs().amax() < _LARGEST))
            ):
                raise Impossible

    def _undo(self, num_parts: int, num_lines: int, number: int) -> None:
        parts, lines = self.parts[:num_parts], self.lines[:num_lines]
        self._start()
        for line in [*parts, *lines]:
            self._run(line)
        names = [line.split(" = ")[0] for line in lines]
        self.values |= {
            name: self._env[name] for name in [*self.values, *names] if name.isidentifier()
        }
        self.parts, self.lines, self._number = parts, lines, number
