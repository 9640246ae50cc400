"""What tracing fixed by the example inputs, and what refuses a call that contradicts it.

Python needs numbers where it branches, loops and counts. Tracing gives it those of the example, and
leaves a call in the graph that looks at each number again:

    eq = getitem_2 == 224
    require = require(eq, True, 'x.shape[2] == 224, in conv_stem')
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.fx.node import has_side_effect

from fxquant.errors import CaptureError, kind_of
from fxquant.stored_names import stored_as

_SIGNS = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.eq: "==",
    operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
    operator.and_: "&", operator.or_: "|",
}  # fmt: skip
_NAMED = (len, round, operator.neg, operator.not_, math.ceil, math.floor, math.sqrt)
_MAX_LENGTH = 160


@has_side_effect
@stored_as("require")
def require(value: Any, fixed: Any, what: str) -> None:
    """Refuse a call of a graph in which `value` is not what it was in the example.

    Args:
        value: a size, a condition on sizes, a rank, a type, an argument.
        fixed: what it was.
        what: the same in words.

    Raises:
        CaptureError: it is another one.

    >>> require(224, 224, "x.shape[2] == 224")
    """
    if value is not fixed and (isinstance(value, torch.Tensor) or value != fixed):
        given = kind_of(value) if isinstance(value, torch.Tensor) else repr(value)
        raise CaptureError(
            f"traced with {what}, but called with {given} in the place of {fixed!r}: give "
            "`example_inputs` like this call, or leave the module whole with `leaf_modules`"
        )


def requirements(graph: fx.Graph) -> tuple[str, ...]:
    """Return what the graph requires of a call, in words."""
    found = graph.find_nodes(op="call_function", target=require)
    return tuple(dict.fromkeys(str(node.args[2]) for node in found))


def in_words(value: Any) -> str:
    """Return the expression behind a node: `(x.shape[2] + 6) // 7`.

    >>> gm = fx.symbolic_trace(lambda x: x.shape[2] // 7 == 1)
    >>> in_words(gm.graph.output_node().args[0])
    '(x.shape[2] // 7) == 1'
    """
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op != "call_function":
        if value.op == "call_method" and value.target in ("size", "numel"):
            rest = ", ".join(repr(each) for each in value.args[1:])
            return f"{_operand(value.args[0])}.{value.target}({rest})"
        return value.name
    operands = [_operand(each) for each in value.args]
    if value.target is getattr:
        return f"{operands[0]}.{value.args[1]}"
    if value.target is operator.getitem:
        return f"{operands[0]}[{operands[1]}]"
    if value.target in _SIGNS and len(operands) == 2:
        words = f"{operands[0]} {_SIGNS[value.target]} {operands[1]}"
    elif value.target in _NAMED:
        words = f"{value.target.__name__}({in_words(value.args[0])})"
    else:
        return value.name
    return words if len(words) <= _MAX_LENGTH else value.name


def _operand(value: Any) -> str:
    words = in_words(value)
    is_atom = not isinstance(value, fx.Node) or " " not in words or value.target not in _SIGNS
    return words if is_atom else f"({words})"
