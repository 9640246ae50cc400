"""Example inputs: they tell the ranks of tensors, and whether folding left the results alone."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from fxquant.calibration.arguments import arguments_of
from fxquant.capture.naming import find_regions
from fxquant.capture.tracer import left_as_it_is
from fxquant.errors import PassError
from fxquant.numerics.decibels import sqnr
from fxquant.streaming.leaves import map_leaves
from fxquant.streaming.running import interpreted

_logger = logging.getLogger("fxquant")
_MIN_FOLDING_SQNR = 40.0  # dB; float16 folds to about 60, a wrong fold to less than 20


@dataclass(frozen=True)
class Example:
    """The first call of one graph of a model, and what came of it."""

    gm: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def run_examples(model: nn.Module, example_inputs: Any) -> list[Example]:
    """Run the model on the examples, note every shape in its graphs, and return their calls.

    Args:
        model: one graph, or a model with regions.
        example_inputs: what it is called with once: a tensor, a tuple of arguments, a dict of
            keywords; a list counts as one argument of a model with regions.
    """
    arguments: dict[nn.Module, tuple[Any, Any]] = {}
    examples: dict[nn.Module, Example] = {}

    def note_arguments(gm: nn.Module, args: Any, kwargs: Any) -> None:
        if gm not in arguments:  # copied before the graph can write to them
            arguments[gm] = map_leaves((args, kwargs), _copied)

    def note(gm: nn.Module, _: Any, __: Any, output: Any) -> None:
        assert isinstance(gm, fx.GraphModule)
        if gm not in examples:
            examples[gm] = Example(gm, *arguments[gm], map_leaves(output, _copied))

    with torch.no_grad(), left_as_it_is(model), contextlib.ExitStack() as stack:
        for gm in find_regions(model).values():
            stack.enter_context(interpreted(gm, _ShapeNotes(gm)))
            hook = gm.register_forward_pre_hook(note_arguments, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
            stack.callback(gm.register_forward_hook(note, with_kwargs=True).remove)
        model(*example_arguments(model, example_inputs))
    return list(examples.values())


class _ShapeNotes(fx.Interpreter):
    """Notes the shape of every result, as fx's `ShapeProp`, and raises what a call raises."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result


def check_folding(examples: list[Example]) -> None:
    """Raise `PassError` if a graph does not give, up to rounding, what it gave before."""
    for example in examples:
        with torch.no_grad(), left_as_it_is(example.gm):
            args, kwargs = map_leaves((example.args, example.kwargs), _copied)
            output = example.gm(*args, **kwargs)
        for before, after in zip(_floats(example.output), _floats(output), strict=True):
            agreement = sqnr(before, after)
            _logger.info("folding: outputs agree to %.0f dB on the example inputs", agreement)
            if agreement < _MIN_FOLDING_SQNR:
                raise PassError(
                    f"folding changed the outputs on the example inputs: they agree to "
                    f"{agreement:.1f} dB, less than {_MIN_FOLDING_SQNR}: please report the model"
                )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _floats(output: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0:
            found.append(value)

    map_leaves(output, note)
    return found


def example_arguments(model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    """Return the arguments that one example (a tensor, a tuple, a dict of keywords) stands for."""
    if isinstance(example_inputs, dict):
        return arguments_of(model, example_inputs, "example_inputs")
    is_whole = isinstance(model, fx.GraphModule)
    if isinstance(example_inputs, tuple) or (is_whole and isinstance(example_inputs, list)):
        return tuple(example_inputs)
    return (example_inputs,)
