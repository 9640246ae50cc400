"""Compare what was captured with the caller's model, and leave in Python what differs.

    captured = prove(model, capture(model), Call((x,)), partial(capture, model))

Tracing runs `forward` once, on proxies: what it decides on them (`isinstance(y, Tensor)`), what it
writes, what is called behind its back may be lost, and nobody would notice. So both are called with
the same arguments, each on copies, and their outputs compared (`fxquant.numerics.differences`).
Where they differ, the smallest submodule is looked for that computes something else as a graph than
in Python, on what the caller's model gives it. It stays in Python; the rest is captured again.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.calling.trial import copy_to_call, detached_copy, outputs_of, run_calls
from fxquant.capture.example import Call
from fxquant.capture.given_models import copy_without_wrappers, unwrapped
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import Captured
from fxquant.capture.tracer import trace_graph
from fxquant.errors import CaptureError
from fxquant.modules.overrides import why_overridden
from fxquant.numerics.differences import Difference, find_differences

_logger = logging.getLogger("fxquant")


def prove(
    reference: nn.Module,
    captured: Captured,
    call: Call,
    capture_again: Callable[[Mapping[str, str]], Captured],
) -> Captured:
    """Return what computes what `reference` computes: `captured`, or less of it.

    Args:
        reference: the caller's model, as `reference_of` makes it.
        captured: what was made of it.
        call: an example.
        capture_again: captures without the submodules of these names, for the reasons given.

    Raises:
        CaptureError: nothing can be captured that gives the same outputs.
    """
    while differences := compare(reference, captured.model, call):
        found = find_culprits(reference, captured, call, differences)
        new = {path: what for path, what in found.items() if path not in captured.left}
        if not new:
            raise _no_match(reference, captured, differences)
        path, what = next(iter(new.items()))
        _logger.warning(
            "%s: left in Python: %s%s",
            path or type(reference).__name__,
            what,
            f"; and {len(new) - 1} more, which fxquant.report lists" if len(new) > 1 else "",
        )
        try:
            captured = capture_again({**captured.left, **new})
        except CaptureError as error:
            raise _no_match(reference, captured, differences) from error
    return captured


def _no_match(
    reference: nn.Module, captured: Captured, differences: Sequence[Difference]
) -> CaptureError:
    without = f", without {', '.join(map(repr, captured.left))} too" if captured.left else ""
    others = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
    return CaptureError(
        f"{type(reference).__name__}: traced, it computes something else than in Python{without}: "
        f"{differences[0]}{others}. Remedy: quantize a submodule; or let forward decide nothing by "
        "what tracing hides from it: types of tensors, errors, attributes that it writes"
    )


def reference_of(model: nn.Module, captured: nn.Module) -> nn.Module:
    """Return a copy of the caller's model in eval mode, with all its hooks and `forward`s.

    It shares with `captured` the tensors that have the same name there, with `model` nothing.
    """
    theirs: dict[str, Tensor] = {}
    memo: dict[int, Any] = {}
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):
        theirs.update(of(captured, remove_duplicate=False))
        for name, tensor in of(unwrapped(model), remove_duplicate=False):
            other = theirs.get(name)
            if other is not None and _facts(other) == _facts(tensor):
                memo[id(tensor)] = other
    return copy_without_wrappers(model, memo).eval()


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.shape, tensor.dtype, tensor.device


def compare(reference: nn.Module, captured: nn.Module, call: Call) -> list[Difference]:
    """Return where `captured` gives something else: in a first call, or in a second behind it.

    Where `reference` itself depends on random numbers, nothing can be told.
    """
    expected = outputs_of(reference, [call, call])
    has_state = bool(find_differences(*expected))
    actual = _try(outputs_of, captured, [call, call] if has_state else [call])
    if isinstance(actual, Exception):
        return [Difference("", f"raises {type(actual).__name__}: {actual}")]
    differences = find_differences(expected[: len(actual)], actual)
    if not differences:
        return []
    others = outputs_of(reference, [call, call], seed=1)
    random = {each.where for each in find_differences(expected, others)}
    if any(each.where in random for each in differences):
        _logger.warning(
            "%s: its outputs are random, and could not be compared with what was captured",
            type(reference).__name__,
        )
    return [
        replace(each, where=each.where.partition("]")[2])  # without the number of the call
        for each in differences
        if each.where not in random
    ]


def _try(run: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `run` returns, or the error that it raises: a graph may be wrong in any way."""
    try:
        return run(*arguments)
    except Exception as error:
        return error


def find_culprits(
    reference: nn.Module, captured: Captured, call: Call, differences: Sequence[Difference]
) -> dict[str, str]:
    """Return the smallest submodules that are something else as graphs, and what differs there."""
    regions = list(find_regions(captured.model))
    if regions == [""]:
        suspects = {"": str(differences[0])}
    else:
        suspects = _differing(reference, captured, regions, call, with_hooks=False)
    found = {}
    while suspects:
        path, what = suspects.popitem()
        parts = list(_parts(reference.get_submodule(path), path, captured.leaves))
        inner = _differing(reference, captured, parts, call)
        suspects.update(inner)
        if not inner:
            found[path] = f"traced, it computes something else: {what}"
    return found


def _parts(module: nn.Module, path: str, leaves: Set[str]) -> Iterator[str]:
    """Yield the names of the submodules of `module` that tracing looks into."""
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        is_torchs = type(child).__module__.startswith("torch.nn.")
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child, inside, leaves)
        elif inside not in leaves and (
            not is_torchs or any(child.children()) or why_overridden(child) is not None
        ):
            yield inside


@dataclass(frozen=True)
class _Recorded:
    """A call of a submodule while the whole model ran."""

    call: Call
    random: Tensor
    """The state of the random numbers before it."""
    output: Any


def _differing(
    reference: nn.Module,
    captured: Captured,
    paths: Sequence[str],
    call: Call,
    *,
    with_hooks: bool = True,
) -> dict[str, str]:
    """Return which submodules give something else as graphs of their own, and what differs.

    Args:
        reference: the model.
        captured: what is traced alone is traced as it was there.
        paths: names of the submodules in question.
        call: of the model.
        with_hooks: whether what their hooks do is in their graphs.
    """
    calls = _calls_of(reference, paths, call, with_hooks)
    example = captured.call
    examples = {} if example is None else _calls_of(reference, paths, example, with_hooks)
    differing = {}
    for path in paths:
        module = copy.deepcopy(reference.get_submodule(path)).eval()
        prefix = f"{path}." if path else ""
        inside = (name.removeprefix(prefix) for name in captured.leaves if name.startswith(prefix))
        leaves = {module.get_submodule(name) for name in inside if name}
        traced_with = next((each.call for each in examples.get(path, ())), None)
        try:
            graph = trace_graph(module, leaves, call=traced_with, is_region=not with_hooks)
        except CaptureError:  # it is no part of a graph, then
            continue
        what = _why_another(fx.GraphModule(module, graph), calls[path])
        if what is not None:
            differing[path] = what
    return differing


def _calls_of(
    reference: nn.Module, paths: Sequence[str], call: Call, with_hooks: bool
) -> dict[str, list[_Recorded]]:
    """Return what the submodules are called with in two calls of the model."""
    running = copy_to_call(reference)
    recorded: dict[str, list[_Recorded]] = {path: [] for path in paths}
    for path, calls in recorded.items():
        _record(running.get_submodule(path), calls, with_hooks)
    run_calls(running, [call, call], seed=0)
    return recorded


def _record(module: nn.Module, calls: list[_Recorded], with_hooks: bool) -> None:
    """Let `module` record what it is called with: outside of its own hooks, or within."""
    begun: list[tuple[Call, Tensor]] = []

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append((detached_copy(Call(args, kwargs)), torch.get_rng_state()))

    def end(_: nn.Module, __: Any, output: Any) -> None:
        calls.append(_Recorded(*begun.pop(), detached_copy(output)))

    module.register_forward_pre_hook(begin, prepend=with_hooks, with_kwargs=True)
    module.register_forward_hook(end, prepend=not with_hooks)


def _why_another(alone: fx.GraphModule, calls: Sequence[_Recorded]) -> str | None:
    """Return what differs where a graph is called as its submodule was; None if nothing does."""
    for each in calls:
        with torch.random.fork_rng(()):
            torch.set_rng_state(each.random)
            outputs = _try(run_calls, alone, [each.call], None)
        if isinstance(outputs, Exception):
            return f"raises {type(outputs).__name__}: {outputs}"
        differences = find_differences([each.output], outputs)
        if differences:
            return str(replace(differences[0], where=differences[0].where.partition("]")[2]))
    return None
