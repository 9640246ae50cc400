"""Example inputs: they tell the ranks of tensors, and whether folding left the results alone."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from fxquant.calling.arguments import arguments_of, call_on_batch, example_of, plain_call
from fxquant.calling.explanation import explained
from fxquant.calling.trial import run_calls
from fxquant.capture.example import Call, call_of
from fxquant.capture.given_models import copy_without_wrappers, unwrapped
from fxquant.capture.naming import find_regions
from fxquant.capture.recording.state import left_as_it_is
from fxquant.errors import PassError
from fxquant.modules.copies import copy_module
from fxquant.numerics.containers import cloned, map_leaves, tensors_in
from fxquant.numerics.decibels import sqnr
from fxquant.streaming.running import interpreted

_logger = logging.getLogger("fxquant")
_FEW = 8  # samples of an example: more would show the same
_MIN_FOLDING_SQNR = 40.0  # dB; float16 folds to about 60, a wrong fold to less than 20


@dataclass(frozen=True)
class Example:
    """The first call of one graph of a model, and what came of it."""

    gm: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def run_examples(model: nn.Module, call: Call) -> list[Example]:
    """Run the model on the examples, note every shape in its graphs, and return their calls.

    Args:
        model: one graph, or a model with regions.
        call: what it is called with once.
    """
    arguments: dict[nn.Module, tuple[Any, Any]] = {}
    examples: dict[nn.Module, Example] = {}

    def note_arguments(gm: nn.Module, args: Any, kwargs: Any) -> None:
        if gm not in arguments:  # copied before the graph can write to them
            arguments[gm] = cloned((args, kwargs))

    def note(gm: nn.Module, _: Any, __: Any, output: Any) -> None:
        assert isinstance(gm, fx.GraphModule)
        if gm not in examples:
            examples[gm] = Example(gm, *arguments[gm], cloned(output))

    with torch.no_grad(), left_as_it_is(model), contextlib.ExitStack() as stack:
        for gm in find_regions(model).values():
            stack.enter_context(interpreted(gm, _ShapeNotes(gm)))
            hook = gm.register_forward_pre_hook(note_arguments, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)
            stack.callback(gm.register_forward_hook(note, with_kwargs=True).remove)
        args, kwargs = cloned((call.args, call.kwargs))
        model(*args, **kwargs)
    return list(examples.values())


class _ShapeNotes(fx.Interpreter):
    """Notes the shape of every result, as fx's `ShapeProp`, and raises what a call raises."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(result)
        return result


def check_folding(examples: list[Example]) -> None:
    """Raise `PassError` if a graph does not give, up to rounding, what it gave before.

    Of a graph that makes as much of a change of its inputs in the last bits (a choice of the best
    few does: two change places), nothing can be told: that is logged.
    """
    for example in examples:
        output = _run(example, example.args, example.kwargs)
        agreements = _agreements(example.output, output)
        for agreement in agreements:
            _logger.info("folding: outputs agree to %.0f dB on the example inputs", agreement)
        if min(agreements, default=math.inf) < _MIN_FOLDING_SQNR:
            nudged = map_leaves((example.args, example.kwargs), _nudged)
            _judge(agreements, _agreements(output, _run(example, *nudged)))


def _judge(agreements: list[float], amplified: list[float]) -> None:
    """Raise for outputs that folding changed, if inputs with other last bits leave them alone."""
    unknown = []
    for agreement, steady in zip(agreements, amplified, strict=True):
        if agreement >= _MIN_FOLDING_SQNR:
            continue
        if steady >= _MIN_FOLDING_SQNR:
            raise PassError(
                f"folding changed the outputs on the example inputs: they agree to "
                f"{agreement:.1f} dB, less than {_MIN_FOLDING_SQNR}: please report the model"
            )
        unknown.append((agreement, steady))
    if unknown:
        _logger.warning(
            "folding: %d of %d outputs agree to %.1f dB on the example inputs, and to %.1f dB when "
            "these change in their last bits: what folding did cannot be told; compare with "
            "fxquant.report(quantized, reference=model, batches=…)",
            len(unknown),
            len(agreements),
            *min(unknown),
        )


def _run(example: Example, args: Any, kwargs: Any) -> Any:
    with torch.no_grad(), left_as_it_is(example.gm):
        args, kwargs = cloned((args, kwargs))
        return example.gm(*args, **kwargs)


def _agreements(expected: Any, actual: Any) -> list[float]:
    return [sqnr(*pair) for pair in zip(_floats(expected), _floats(actual), strict=True)]


def _nudged(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    signs = 1 - 2 * (torch.arange(value.numel(), device=value.device) % 2)
    last_bits = 8 * torch.finfo(value.dtype).eps
    return value * (1 + last_bits * signs.reshape(value.shape)).to(value.dtype)


def _floats(output: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0:
            found.append(value)

    map_leaves(output, note)
    return found


def example_call(model: nn.Module, example_inputs: Any) -> Call:
    """Return the call that one example stands for, which `model` takes: see `fxquant.prepare`.

    Raises:
        CalibrationError: the model raised an error, which is its cause.
    """
    model = unwrapped(model)
    call = call_of(example_of(model, example_inputs))
    require_takes(model, call, "example_inputs", example_inputs)
    return call


def example_arguments(model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    """Return the arguments that one example stands for, all by position."""
    call = call_of(example_of(model, example_inputs))
    return arguments_of(model, call.kwargs, "example_inputs") if call.kwargs else call.args


def batch_call(
    model: nn.Module, batch: Any, forward: Callable[..., Any] | None, where: str = "batch 0"
) -> Call | None:
    """Return the call that a batch of a data set stands for; None if `forward` makes none.

    Args:
        model: the caller's, which takes the call; left as it is.
        batch: as `fxquant.calibrate` takes it.
        forward: what calls a model with a batch, if it is no usual one.
        where: for errors.

    Raises:
        CalibrationError: the batch stands for no call, or the model raised an error, which is its
            cause.
    """
    model = unwrapped(model)
    if forward is not None:
        return _call_by(forward, model, batch, where)
    call = plain_call(model, batch, where)
    require_takes(model, call, where, batch)
    return call


def example_calls(
    model: nn.Module, batch: Any, forward: Callable[..., Any] | None, where: str = "batch 0"
) -> list[Call]:
    """Return the calls that may stand for a batch as an example, the cheapest first.

    Its first few samples, where the model takes them alone, then all of it; see `batch_call`.
    """
    unwrapped_model = unwrapped(model)
    if forward is None:
        call: Call | None = plain_call(unwrapped_model, batch, where)
    else:
        call = _call_by(forward, unwrapped_model, batch, where)
    few = None if call is None else few_of(call)
    if call is not None and few is not None and _takes(unwrapped_model, few):
        return [few, call]
    if call is not None and forward is None:
        require_takes(unwrapped_model, call, where, batch)
    return [] if call is None else [call]


def few_of(call: Call) -> Call | None:
    """Return the same call of a few samples; None if it has no more, or what a sample is is open.

    That is known where the first axes of all tensors are of one length.

    >>> few_of(Call((torch.zeros(32, 3),), {"mask": torch.zeros(32, 5)})).args[0].shape
    torch.Size([8, 3])
    """
    given = [*call.args, *call.kwargs.values()]
    if any(not isinstance(each, Tensor) and [*tensors_in(each)] for each in given):
        return None
    lengths = {len(each) if each.dim() > 1 else 0 for each in given if isinstance(each, Tensor)}
    if len(lengths) != 1 or max(lengths) <= _FEW:
        return None

    def cut(value: Any) -> Any:
        return value[:_FEW] if isinstance(value, Tensor) else value

    return Call(tuple(map(cut, call.args)), {key: cut(each) for key, each in call.kwargs.items()})


def _takes(model: nn.Module, call: Call) -> bool:
    try:
        run_calls(copy_without_wrappers(model, {}).eval(), [call], seed=0)
    except Exception:  # the caller's code may raise anything
        return False
    return True


def require_takes(model: nn.Module, call: Call, where: str, batch: Any) -> None:
    """Raise `CalibrationError` if a copy of `model` raises an error when it is called so.

    Before anything is traced: so the error speaks of the caller's own modules.
    """
    running = copy_without_wrappers(model, {}).eval()  # in whole: it may write to its parameters
    with explained(where, batch):
        run_calls(running, [call], seed=0)


def _call_by(forward: Callable[..., Any], model: nn.Module, batch: Any, where: str) -> Call | None:
    """Return the first call that `forward` makes of a copy of the model."""
    running, calls = copy_module(model).eval(), []
    running.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(Call(*cloned((args, kwargs)))),
        with_kwargs=True,
    )
    with torch.no_grad():
        call_on_batch(running, batch, where, forward)
    return calls[0] if calls else None
