"""The first call of a prepared model is compared with the caller's: they agree, or it is an error.

    compare_first_calls(prepared, FirstCalls(reference, capture_again))
    prepared(x)        # runs the reference too: CaptureError, or the same output

A second time that is done on the first call of other sizes; then the hooks go away, and with them
the reference. It costs two float forwards, and one. Batch norms are folded by then, which rounds:
where outputs differ, the model is captured once more, as it was, and that is what is compared.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.calibration.proof import compare, find_culprits
from fxquant.calling.trial import outputs_of
from fxquant.capture.example import Call
from fxquant.capture.partition import Captured
from fxquant.errors import CaptureError
from fxquant.modules.own import own_modules
from fxquant.numerics.containers import map_leaves
from fxquant.numerics.differences import Difference, find_differences
from fxquant.stored_names import stored_as
from fxquant.streaming.running import device_of

_logger = logging.getLogger("fxquant")
_CALLS = 2  # of different sizes: what was decided by the first one's would show in the second


@stored_as("FirstCalls")
class FirstCalls(nn.Module):
    """What the first calls of a prepared model are compared with.

    Copies share the reference, which nothing writes to. Pickles and files leave it out: a model
    that was stored before it was called is not compared any more.

    Args:
        reference: the caller's model; see `fxquant.calibration.proof.reference_of`.
        capture_again: captures it, as it was for the prepared model.
        passes: the caller's own, which ran on that.
    """

    held: tuple[nn.Module, Callable[..., Captured], Sequence[Any]] | None
    """All arguments, in a tuple: they are no part of the prepared model."""
    seen: list[Any]
    """Sizes of the calls that were compared."""
    places: set[Any]
    """Devices and dtypes of the prepared model's parameters when it shared them."""
    _expected: tuple[Call, list[Any]] | None

    def __init__(
        self,
        reference: nn.Module,
        capture_again: Callable[..., Captured],
        passes: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.held, self.seen, self.places = (reference, capture_again, passes), [], set()
        self._expected = None

    @stored_as("FirstCalls.begin")
    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the reference on what `model` is about to be called with; a forward pre-hook."""
        self._expected = None
        is_converted = any(each.stage == "converted" for _, each in own_modules(model))
        if self.held is None and not is_converted:
            _logger.info("not compared with the caller's model: stored before its first call")
        if self.held is None or is_converted:
            stop_comparing(model)
        elif sizes_of((args, kwargs)) not in self.seen:
            call = _as_call(self.held[0], model, args, kwargs)
            # The first time twice: what it keeps between calls shows in the second.
            calls = [call] * (1 if self.seen else 2)
            self._expected = call, outputs_of(self._reference_for(model), calls, seed=None)

    @stored_as("FirstCalls.end")
    def end(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Compare what came of it; a forward hook.

        Raises:
            CaptureError: the graph computes something else.
        """
        if self._expected is None:
            return
        (call, expected), self._expected = self._expected, None
        differences = find_differences(expected[0], output)
        if differences or find_differences(expected[0], expected[-1]):
            self._explain(model, call, differences)
        self.seen.append(sizes_of(vars(call)))
        if len(self.seen) >= _CALLS:
            stop_comparing(model)

    def _explain(self, model: nn.Module, call: Call, differences: list[Difference]) -> None:
        """Raise if it is tracing that made the difference, not what passes did since."""
        assert self.held is not None
        reference, capture_again = self._reference_for(model), self.held[1]
        captured = capture_again(reference)
        of_capture = compare(reference, captured.model, call)
        if not of_capture:
            for each in differences:
                _logger.info("what was captured is the model; now, by passes, %s", each)
            return
        culprits = find_culprits(reference, captured, call, of_capture)
        where = f"traced, it computes something else: {of_capture[0]}"
        path, what = next(iter(culprits.items()), ("", where))
        kind = type(reference.get_submodule(path)).__name__
        remedy = f", or leaf_modules=[{path!r}]" if path else ""
        raise CaptureError(
            f"{path or 'the model itself'} ({kind}): {what}. Remedy: prepare(model, "
            f"example_inputs=…), which leaves in Python what differs{remedy}"
        )

    def _reference_for(self, model: nn.Module) -> nn.Module:
        """Return the reference where `model` is now; what both share has moved with it."""
        assert self.held is not None
        reference, now = self.held[0], places_of(model)
        if now == self.places:
            return reference
        dtypes = [dtype for _, dtype in now]
        moved = copy.deepcopy(reference).eval().to(device_of(model))
        return moved.to(dtypes[0]) if len(dtypes) == 1 else moved

    def renew(self, copied: nn.Module) -> None:
        """Let a copy of the model be compared too: fx gives copies of graphs no forward hooks."""
        hooks = vars(copied)["_deepcopy_hooks"]
        _attach(copied, next(each.__self__ for each in hooks if _is_ours(each)))

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstCalls:
        copied = FirstCalls.__new__(FirstCalls)
        vars(copied).update(vars(self), seen=list(self.seen))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "held": None, "_expected": None}

    def check_stored(self) -> None:
        """Raise `ValueError` if a file held what it would call."""
        if self.held is not None or self._expected is not None:
            raise ValueError("a file holds no model to compare with")


def compare_first_calls(
    model: nn.Module, first_calls: FirstCalls, compared: Call | None = None
) -> None:
    """Let the first calls of `model` be compared, but for those of the sizes of `compared`."""
    first_calls.places = places_of(model)
    if compared is not None:
        first_calls.seen.append(sizes_of(vars(compared)))
    _attach(model, first_calls)
    if isinstance(model, fx.GraphModule):
        model._register_deepcopy_hook(first_calls.renew)


def _attach(model: nn.Module, first_calls: FirstCalls) -> None:
    model.register_forward_pre_hook(first_calls.begin, with_kwargs=True)
    model.register_forward_hook(first_calls.end, with_kwargs=True)


def stop_comparing(model: nn.Module) -> None:
    """Take the hooks off, if there are any."""
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = vars(model)[kind]
        for number in [number for number, hook in hooks.items() if _is_ours(hook)]:
            del hooks[number]
            vars(model)[f"{kind}_with_kwargs"].pop(number, None)
    copying = vars(model).get("_deepcopy_hooks", [])
    copying[:] = [hook for hook in copying if not _is_ours(hook)]


def is_compared(model: nn.Module) -> bool:
    """Say whether the next call of `model` may be one that is compared."""
    return any(map(_is_ours, model._forward_hooks.values()))


def uncompared_source(
    model: nn.Module,
) -> tuple[nn.Module, Callable[..., Captured], Sequence[Any]] | None:
    """Return the arguments of `FirstCalls`, if `model` was never compared with the caller's."""
    ours: list[Any] = [hook for hook in model._forward_hooks.values() if _is_ours(hook)]
    first_calls: FirstCalls | None = ours[0].__self__ if ours else None
    if first_calls is None or first_calls.held is None or first_calls.seen:
        return None
    return first_calls._reference_for(model), *first_calls.held[1:]


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), FirstCalls)


def places_of(model: nn.Module) -> set[tuple[torch.device, torch.dtype]]:
    """Return the devices and dtypes of the floating-point parameters."""
    return {(each.device, each.dtype) for each in model.parameters() if each.is_floating_point()}


def sizes_of(arguments: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors in a nest of arguments, in an order of their own."""
    sizes: list[tuple[int, ...]] = []

    def note(value: Any) -> None:
        if isinstance(value, Tensor):
            sizes.append(tuple(value.shape))

    map_leaves(arguments, note)
    return sorted(sizes)


def _as_call(
    reference: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Return the call of the reference that is one of `model`: graphs take all by position.

    What has a default is given by keyword, or left out: decorators of transformers add keywords,
    and would find them given twice.
    """
    if not isinstance(model, fx.GraphModule):
        return Call(args, kwargs)
    names = [str(node.target) for node in model.graph.find_nodes(op="placeholder")]
    parameters = inspect.signature(reference.forward).parameters
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
    by_position: list[Any] = []
    by_keyword: dict[str, Any] = {}
    for name, value in zip(names, args, strict=False):
        known = parameters.get(name)
        is_optional = known is not None and known.default is not known.empty and not takes_any
        if known is None or not (is_optional or known.kind is known.KEYWORD_ONLY):
            by_position.append(value)
        elif value is not known.default:
            by_keyword[name] = value
    return Call(tuple(by_position), {**by_keyword, **kwargs})
