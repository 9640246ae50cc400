"""What a rule found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class Violation:
    """What TensorRT does not take, or reads otherwise than ONNX, or could run faster (advice)."""

    node: str
    """The node's name, or its result's where it has none; "" if it is the model's."""
    rule: str
    found: str
    """What stands there, with its values."""
    remedy: str
    is_advice: bool = False

    def __str__(self) -> str:
        kind = "advice" if self.is_advice else "error"
        where = f"{self.node}: " if self.node else ""
        return f"{kind}: {where}{self.found}; {self.remedy} ({self.rule})"


def name_of(node: NodeProto) -> str:
    """Return what to call a node by."""
    return node.name or next(iter(node.output), "")
