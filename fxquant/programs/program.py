"""A lowered graph as a flat list of steps, for inputs of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from threading import Lock
from typing import Any

from fxquant.programs.buffers import Buffers
from fxquant.programs.guards import Guards
from fxquant.programs.library import Refused
from fxquant.programs.steps import Execute, Slot, Step, Unexpected, filled


class Program:
    """Steps, the memory that they work in, and what they return.

    Args:
        steps: in the order in which they run.
        inputs: where each argument of a call goes among the values; None: nobody reads it.
        num_values: how many values there are.
        result: of a call: a `Slot` for a value, an `Own` for what lies in the memory.
        buffers: the memory.
        guards: what the program takes for granted.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        inputs: Sequence[Slot | None],
        num_values: int,
        result: Any,
        buffers: Buffers,
        guards: Guards,
    ) -> None:
        self.steps, self.buffers, self._guards = list(steps), buffers, guards
        self._inputs = [(place, slot.number) for place, slot in enumerate(inputs) if slot]
        self._values: list[Any] = [None] * num_values
        self._result = result
        self._parts: list[Any] = []
        """Steps, and lists of primitives that run one after the other."""
        for is_primitive, group in groupby(steps, lambda step: isinstance(step, Execute)):
            several = [step.run if isinstance(step, Execute) else step for step in group]
            self._parts += [several] if is_primitive else several
        self._lock = Lock()

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

    def is_valid(self) -> bool:
        """Say whether the program computes what its graph does: nothing was changed since."""
        return self._guards.hold()

    def run(self, arguments: Sequence[Any]) -> Any:
        """Return what the graph returns for arguments of the program's kind.

        Raises:
            Unexpected: the graph must compute it: another thread runs the program, or a value is
                not such as it was made for. Nothing was changed.
        """
        if not self._lock.acquire(blocking=False):
            raise Unexpected
        values = self._values
        try:
            for place, slot in self._inputs:
                values[slot] = arguments[place]
            for parts in self._parts:
                if callable(parts):
                    parts(values)
                elif any([run() for run in parts]):  # a list: all of them run
                    raise Refused("primitive_execute fails")
            return filled(self._result, values)
        finally:
            for slot in range(len(values)):
                values[slot] = None
            self._lock.release()
