"""Notes of what is called in a model while it is calibrated: by regions, and past them."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxquant.errors import CaptureError, kind_of
from fxquant.stored_names import stored_as


@stored_as("CallNotes")
class CallNotes:
    """What of a region the code around it called: hooks write it down.

    They refuse a call that the graph was not traced for.
    """

    path: str
    fixed: dict[int | str, Any]
    """Arguments, by place and by name, that the graph holds at a value."""
    region: bool
    """Whether it was called."""
    parts: dict[str, str]
    """Types of the parts that were called by themselves, by name."""

    def __init__(self, path: str, fixed: dict[int | str, Any]) -> None:
        self.path, self.fixed, self.region, self.parts = path, fixed, False, {}

    @stored_as("CallNotes.note_region")
    def note_region(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note a call of the region, and check its arguments; a forward pre-hook with keywords."""
        self.region = True
        for key, value in (*enumerate(args), *kwargs.items()):
            if key in self.fixed and value is not self.fixed[key] and value != self.fixed[key]:
                raise CaptureError(
                    f"{self.path}: traced with argument {key!r} fixed at {self.fixed[key]!r}, but "
                    f"called with {kind_of(value)}: give `example_inputs` like this call, "
                    f"or leave it whole with leaf_modules=[{self.path!r}]"
                )


@stored_as("NotePart")
class NotePart:
    """A forward pre-hook of one part."""

    _notes: CallNotes
    _name: str

    def __init__(self, notes: CallNotes, name: str) -> None:
        self._notes, self._name = notes, name

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Note that the part is called, and of which type it is."""
        self._notes.parts[self._name] = type(module).__name__
