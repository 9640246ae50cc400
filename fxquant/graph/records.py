"""What fxquant knows of each node: one frozen `Record` under `node.meta["fxquant"]`.

`annotate` is the only writer. Copies of a graph share the objects in `node.meta`, hence frozen;
pickling drops `node.meta`, hence the `Journal`, a submodule that keeps the records, and the recipe,
for a model that is saved.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

from fxquant.capture.attributes import KEY
from fxquant.numerics.affine import AffineNumbers
from fxquant.stored_names import stored_as

_logger = logging.getLogger("fxquant")
_COSTLY = {"left in float", "products left in float", "not lowered", "stays simulated"}
"""Steps without which calls are in float that might be in integers."""


@stored_as("Refusal")
@dataclass(frozen=True)
class Refusal:
    """What was not done with a node, and why.

    >>> str(Refusal("not folded", "conv also feeds add"))
    'not folded: conv also feeds add'
    """

    step: str
    """In the words of a report: "not folded", "left in float"."""
    reason: str

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.step}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """Facts about one node."""

    origin: str | None = None
    """The module's name in the caller's model, where a pass gave this call a copy of it."""
    folded: tuple[str, ...] = ()
    """Names of the batch norms that the call's layer now computes."""
    relu: str | None = None
    """Name of the ReLU node fused behind this one."""
    fused_into: str | None = None
    """On that ReLU: name of the node it is fused behind."""
    clamp: tuple[float, float] | None = None
    """On both: the ReLU's bounds, (0, ∞) or (0, 6) for ReLU6."""
    serves: tuple[str, ...] | None = None
    """On an observer before a fused ReLU: the readers of the ReLU's result that its quantizer is
    for; None: all."""
    for_all: bool = False
    """On an observer: the target wants no reader of the float value beside its quantizer."""
    skipped: bool = False
    """The recipe leaves the call in float."""
    refused: tuple[Refusal, ...] = ()
    integers: AffineNumbers | None = None
    """In a lowered graph: what the node's integers stand for; None: its result is in float."""
    value_of: str | None = None
    """In a lowered graph: the node of the fake-quantized graph whose value this one computes; None:
    the one of its own name; "": none, its result is in other units."""
    multiply_adds: float | None = None
    """Of its products, a sample; None: it has none, or they were not counted."""
    input_shape: tuple[int, ...] | None = None
    """Of a convolution, what it read in the call whose multiply-adds were counted."""
    moments: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)
    """Mean and standard deviation of each output channel, as its batch norm has them."""


def record(node: fx.Node) -> Record:
    """Return the record of `node`: an empty one if nothing was written yet."""
    found = node.meta.get(KEY, Record())
    assert isinstance(found, Record)
    return found


def value_of(node: fx.Node) -> str:
    """Return the name of the node of the fake-quantized graph whose value `node` computes.

    "" if it computes none: the result is in other units.
    """
    known = record(node).value_of
    return node.name if known is None else known


def annotate(node: fx.Node, **facts: Any) -> None:
    """Write `facts` (fields of `Record`) over what the node's record says of them."""
    node.meta[KEY] = replace(record(node), **facts)


def refuse(node: fx.Node, step: str, reason: str) -> None:
    """Record that a step was not done with `node`, and why; the first time, log it too."""
    refusal, known = Refusal(step, reason), record(node).refused
    if refusal not in known:
        annotate(node, refused=(*known, refusal))
        _logger.info("%s: %s", node.name, refusal)


def refusals_of(graphs: Iterable[fx.GraphModule]) -> Counter[Refusal]:
    """Return how many nodes there are of each refusal."""
    return Counter(
        refusal for gm in graphs for node in gm.graph.nodes for refusal in record(node).refused
    )


def tell_refusals(
    caller: str, graphs: Iterable[fx.GraphModule], before: Counter[Refusal] | None = None
) -> None:
    """Log in one line how often what was refused: a warning, if it leaves calls in float.

    Args:
        caller: the function of the API that made the graphs.
        graphs: of one model.
        before: what was refused in front of it.
    """
    new = refusals_of(graphs) - (before or Counter())
    steps: Counter[str] = Counter()
    for refusal, count in new.items():
        steps[refusal.step] += count
    if steps:
        counts = ", ".join(f"{count} {step}" for step, count in steps.items())
        level = logging.WARNING if steps.keys() & _COSTLY else logging.INFO
        first = next(each for each in new if level == logging.INFO or each.step in _COSTLY)
        reason = first.reason if len(steps) == 1 else str(first)
        _logger.log(
            level, "%s: %s (%s); fxquant.report tells which and why", caller, counts, reason
        )
