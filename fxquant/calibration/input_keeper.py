"""A module that keeps what a model is called with, for what needs data after calibration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxquant.calibration.observed import find_observers
from fxquant.calibration.regrouping import regrouped, run_unobserved
from fxquant.calling.arguments import arguments_of, bind_arguments
from fxquant.calling.batching import Batches
from fxquant.calling.explanation import explained
from fxquant.calling.loaders import no_batches
from fxquant.capture.naming import find_regions
from fxquant.errors import CalibrationError
from fxquant.graph.operations import data_input, module_of
from fxquant.graph.submodules import free_name
from fxquant.modules.copies import copy_module
from fxquant.modules.layers import layer_type
from fxquant.modules.own import OwnModule, as_own
from fxquant.numerics.containers import map_leaves, tensors_in
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.stored_names import stored_as
from fxquant.streaming.running import Arguments


@stored_as("InputKeeper")
class InputKeeper(OwnModule):
    """Keep what the model is called with, on the CPU.

    A call of it has all inputs of the model as arguments, and no result: a node in a graph; where
    the model is not one graph, `keep_call` as a hook. Copies share what was kept so far; it is
    never written to.

    Args:
        max_samples: to keep; the batch that exceeds them is cut.
        unbatched_rank: the number of axes of an input that is one sample, without a batch axis;
            None if that is not known.
    """

    watches = True
    max_samples: int
    unbatched_rank: int | None
    batches: list[Arguments]
    num_samples: int
    _is_impure = True  # no one uses its result, and it must run all the same

    def __init__(self, max_samples: int, unbatched_rank: int | None = None) -> None:
        super().__init__()
        self.max_samples = max_samples
        self.unbatched_rank = unbatched_rank
        self.batches = []
        self.num_samples = 0

    def forward(self, *inputs: Any) -> None:
        """Keep copies of `inputs`, cut to what is still missing."""
        room = self.max_samples - self.num_samples
        kept = Batches([inputs], self.unbatched_rank).first(room)
        self.batches += [map_leaves(each, _copy) for each in kept.arguments]
        self.num_samples += kept.num_samples

    @stored_as("InputKeeper.keep_call")
    def keep_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what `model` is about to be called with: a forward pre-hook with keywords."""
        self(*bind_arguments(model.forward, args, kwargs))

    @property
    def kept(self) -> Batches:
        """What was kept so far."""
        return Batches(self.batches, self.unbatched_rank)

    def forget_from(self, number: int) -> None:
        """Forget the batches from `number` on."""
        del self.batches[number:]
        self.num_samples = self.kept.num_samples

    def __deepcopy__(self, memo: dict[int, Any]) -> InputKeeper:
        copied = InputKeeper(self.max_samples, self.unbatched_rank)
        copied.batches, copied.num_samples = list(self.batches), self.num_samples
        return copied

    def extra_repr(self) -> str:
        """Return how many samples are kept."""
        return f"{self.num_samples} of at most {self.max_samples} samples"


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


_logger = logging.getLogger("fxquant")


def keep_inputs(model: nn.Module, max_samples: int) -> None:
    """Let `model` keep what it is called with."""
    name = free_name(model, "kept_inputs")
    if not isinstance(model, fx.GraphModule):
        keeper = InputKeeper(max_samples)
        model.add_module(name, keeper)
        model.register_forward_pre_hook(keeper.keep_call, with_kwargs=True)
        return
    placeholders = model.graph.find_nodes(op="placeholder")
    model.add_submodule(name, InputKeeper(max_samples, unbatched_rank_of(model)))
    with model.graph.inserting_after(placeholders[-1]):
        model.graph.call_module(name, tuple(placeholders))
    model.recompile()


def find_keeper(model: nn.Module) -> InputKeeper | None:
    """Return the module in which `model` keeps its inputs, None if it does not."""
    return next((each for each in model.children() if isinstance(each, InputKeeper)), None)


def stop_keeping_inputs(model: nn.Module) -> None:
    """Remove the module in which `model` keeps its inputs, and what is in it."""
    for name, keeper in list(model.named_children()):
        if isinstance(keeper, InputKeeper):
            if isinstance(model, fx.GraphModule):
                for node in model.graph.find_nodes(op="call_module", target=name):
                    model.graph.erase_node(node)
                model.recompile()
            delattr(model, name)
            drop_hooks(model, InputKeeper)


def drop_hooks(model: nn.Module, kind: type) -> None:
    """Remove the forward hooks and pre-hooks of `model` that are methods of a `kind`."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), kind):
                del hooks[key]
                model._forward_pre_hooks_with_kwargs.pop(key, None)
                model._forward_hooks_always_called.pop(key, None)


def unbatched_rank_of(model: nn.Module) -> int | None:
    """Return how many axes the first input of a graph has without a batch axis.

    None where no layer reads it, or `model` is no graph.
    """
    if not isinstance(model, fx.GraphModule):
        return None
    gm = model
    first = next(iter(gm.graph.find_nodes(op="placeholder")))
    for node in gm.graph.nodes:
        layer, source = module_of(gm, node), data_input(node)
        while source is not None and as_own(module_of(gm, source)).watches:
            source = data_input(source)
        if layer_type(layer) is not None and source is first:
            assert layer is not None
            weight = layer.weight
            assert isinstance(weight, Tensor)
            return max(1, weight.dim() - 1)
    return None


def collect_inputs(
    model: nn.Module, options: Reconstruction, batches: Iterable[Any] | None
) -> list[Arguments]:
    """Return what a reconstruction runs on, in batches of its size, if the model takes them.

    Args:
        model: the prepared one.
        options: how many samples, and how many at a time.
        batches: the data; None: what `model` kept in calibration.

    Raises:
        CalibrationError: there is none, or the model raises an error on it, which is the cause.
    """
    keeper = find_keeper(model)
    assert keeper is not None, "prepare keeps inputs for every recipe with a reconstruction"
    kept = keeper.kept
    if batches is not None:
        given = (arguments_of(model, batch, f"batch {n}") for n, batch in enumerate(batches))
        kept = Batches.taken(given, options.samples, keeper.unbatched_rank)
    if batches is not None or not any(map(_observes, find_regions(model).values())):
        require_takes_all(model, kept.arguments, one_of_a_kind=True)
    samples = kept.num_samples
    if samples == 0 and batches is not None:
        raise no_batches(batches, "convert")
    if samples == 0:
        raise CalibrationError(
            "convert: there is nothing to learn roundings from: run fxquant.calibrate(prepared, "
            "batches) before, or give convert(prepared, batches)"
        )
    if samples < options.samples:
        _logger.info("reconstruction: %d samples, of %d at most", samples, options.samples)
    return list(regrouped(model, kept, options.batch_size).arguments)


def require_takes_all(
    model: nn.Module, calls: Sequence[Arguments], *, one_of_a_kind: bool = False
) -> None:
    """Raise `CalibrationError` if a prepared model raises an error on one of `calls`.

    Args:
        model: the prepared one; a copy runs, which observes nothing.
        calls: what it is called with.
        one_of_a_kind: leave out those that have the sizes and types of another one.
    """
    running, seen = copy_module(model), set()
    for number, arguments in enumerate(calls):
        kind = str([(each.shape, each.dtype) for each in tensors_in(arguments)])
        if not one_of_a_kind or kind not in seen:
            with explained(f"batch {number}", arguments):
                run_unobserved(running, arguments)
        seen.add(kind)


def _observes(gm: fx.GraphModule) -> bool:
    return any(True for _ in find_observers(gm))
