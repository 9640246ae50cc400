"""What a model is called with in an example, argument by argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fxquant.errors import CaptureError

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Argument:
    """One argument of a `forward`."""

    name: str
    """Of `*args`, "args_0"."""
    value: Any
    """That of the example; `EMPTY`, if there is none."""
    default: Any
    """What a call may leave out; `EMPTY`, if it may not."""
    is_given: bool
    """Whether the example gives it."""
    by_keyword: bool
    """Whether the example gives it so, or no call can give it otherwise."""


EMPTY = inspect.Parameter.empty


def arguments(forward: Callable[..., Any], call: Call | None) -> list[Argument]:
    """Return the arguments of `forward` in order, those of `*args` and `**kwargs` one by one.

    Args:
        forward: a bound method.
        call: what it is called with; None: nothing is known of it.

    Raises:
        CaptureError: it does not take such a call.
    """
    signature = inspect.signature(forward)
    given: dict[str, Any] = {}
    if call is not None:
        try:
            given = signature.bind(*call.args, **call.kwargs).arguments
        except TypeError as error:
            raise CaptureError(f"example_inputs: forward{signature}: {error}") from error
    found: list[Argument] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind not in _VARIABLE:
            is_first = call is None or len(found) < len(call.args)
            by_position = parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (
                is_first and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            )
            value = given.get(name, parameter.default)
            found.append(Argument(name, value, parameter.default, name in given, not by_position))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            for number, value in enumerate(given.get(name, ())):
                found.append(Argument(f"{name}_{number}", value, EMPTY, True, False))
        else:
            for key, value in given.get(name, {}).items():
                found.append(Argument(key, value, EMPTY, True, True))
    return found


def call_of(example_inputs: Any) -> Call:
    """Return the call that an example stands for: a tensor, a tuple of arguments, or keywords.

    >>> call_of({"x": 1}), call_of((1, 2)).args
    (Call(args=(), kwargs={'x': 1}), (1, 2))
    """
    if isinstance(example_inputs, dict):
        return Call(kwargs=dict(example_inputs))
    return Call(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,))
