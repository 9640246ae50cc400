"""Count the multiply-adds of a model's first call, whoever makes it.

What runs is the call that comes anyway: of the example in `prepare`, or else of the first batch, in
`calibrate` or in a loop of the caller's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata, _extract_tensor_metadata

from fxquant.calibration.counting import MultiplyAddCounter
from fxquant.calibration.input_keeper import drop_hooks, unbatched_rank_of
from fxquant.calling.batching import Batches
from fxquant.capture.naming import find_regions
from fxquant.graph.journal import read_python_multiply_adds, read_recipe, write_journals
from fxquant.graph.records import annotate, record
from fxquant.stored_names import stored_as
from fxquant.streaming.running import positional

GIVEN = "fxquant_given"
"""The key, among what is known of an input of a model that is one graph, of what it was first."""


def is_counted(model: nn.Module) -> bool:
    """Say whether the multiply-adds of a call of `model` are known."""
    nodes = [node for gm in find_regions(model).values() for node in gm.graph.nodes]
    counted = any(record(node).multiply_adds is not None for node in nodes)
    return counted or bool(read_python_multiply_adds(model))


def count_first_call(model: nn.Module) -> None:
    """Let the next call of a prepared model count its multiply-adds, unless they are known.

    Copies and pickles of a model that is one graph forget it.
    """
    if not (_waiting(model) or is_counted(model)):
        counted = CountedCall()
        # Next to the call itself: what other hooks run is no part of the model.
        model.register_forward_pre_hook(counted.begin, with_kwargs=True)
        model.register_forward_hook(counted.end, always_call=True, prepend=True)


def stop_counting(model: nn.Module) -> None:
    """Let no call of `model` count any more."""
    for counted in _waiting(model):
        counted.close()
    drop_hooks(model, CountedCall)


def _waiting(model: nn.Module) -> list[CountedCall]:
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, CountedCall)]


@contextlib.contextmanager
def counted_first_call(model: nn.Module) -> Iterator[None]:
    """Count the first call of `model` inside the context, and none behind it."""
    count_first_call(model)
    try:
        yield
    finally:
        stop_counting(model)


@stored_as("CountedCall")
class CountedCall:
    """Forward hooks that count one call, and are gone when that has succeeded."""

    _counter: MultiplyAddCounter | None = None
    """While a call runs."""
    _given: dict[fx.Node, TensorMetadata]

    @stored_as("CountedCall.begin")
    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin to count: a pre-hook with keywords. A call of no samples tells nothing."""
        self.close()  # after Ctrl-C no hook has run
        call = (*args, *kwargs.values())
        num_samples = Batches([call], unbatched_rank_of(model)).num_samples
        if num_samples > 0:
            self._counter, self._num_samples = MultiplyAddCounter(model), num_samples
            self._given = _metadata_of(model, args, kwargs)
            self._counter.start()

    @stored_as("CountedCall.end")
    def end(self, model: nn.Module, _: Any, output: Any) -> None:
        """Keep the counts: a hook that is always called, without output where the call failed."""
        counter = self._counter
        self.close()
        if counter is not None and output is not None:
            _write(model, counter, self._num_samples)
            for node, metadata in self._given.items():
                node.meta[GIVEN] = metadata
            drop_hooks(model, CountedCall)

    def check_stored(self) -> None:
        """Raise `ValueError` if a file was saved while a call ran."""
        if self._counter is not None:
            raise ValueError("a call is being counted")

    def close(self) -> None:
        """Stop counting, if a call is running."""
        if self._counter is not None:
            self._counter.stop()
            del self._counter


def _metadata_of(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[fx.Node, TensorMetadata]:
    """Return shape and type of what each input of a model that is one graph is called with."""
    if not isinstance(model, fx.GraphModule):
        return {}
    inputs = model.graph.find_nodes(op="placeholder")
    return {
        node: _extract_tensor_metadata(value)
        for node, value in zip(inputs, positional(model, args, kwargs), strict=False)
        if isinstance(value, Tensor)
    }


def _write(model: nn.Module, counter: MultiplyAddCounter, num_samples: int) -> None:
    """Keep the counts, a sample, in the records of nodes and in the model's journal."""
    for gm in find_regions(model).values():
        for node in gm.graph.nodes:
            if node in counter.nodes:
                annotate(node, multiply_adds=counter.nodes[node] / num_samples)
            if node in counter.inputs:
                annotate(node, input_shape=counter.inputs[node])
    names = {module: name for name, module in model.named_modules()}
    outside = {names[module]: number / num_samples for module, number in counter.modules.items()}
    recipe = read_recipe(model)
    assert recipe is not None, "prepare writes the journal before anything runs"
    write_journals(model, recipe, multiply_adds=outside)
