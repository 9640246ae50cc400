"""What a model is called with: from a batch to arguments, and the calls that are kept for later."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import CalibrationError
from fxquant.graph import free_name
from fxquant.keeper import Arguments, InputKeeper, bind_arguments, cut, num_samples
from fxquant.layers import layer_type
from fxquant.observers import ChannelMean, Observer
from fxquant.operations import data_input, module_of
from fxquant.reconstruction import Reconstruction

_logger = logging.getLogger("fxquant")


def positional(gm: fx.GraphModule, keywords: dict[str, Any], where: str) -> Arguments:
    """Return keyword arguments in the order of the graph's placeholders, defaults filled in.

    Raises:
        CalibrationError: one is unknown, or missing.
    """
    placeholders = {str(node.target): node for node in gm.graph.find_nodes(op="placeholder")}
    unknown = keywords.keys() - placeholders.keys()
    if unknown:
        raise CalibrationError(
            f"{where}: the model has no argument {', '.join(sorted(unknown))}; it has "
            f"{', '.join(placeholders)}"
        )
    missing = [name for name, node in placeholders.items() if not (name in keywords or node.args)]
    if missing:
        raise CalibrationError(
            f"{where}: the model also needs {', '.join(missing)}: give a dict of keywords"
        )
    return tuple(
        keywords[name] if name in keywords else node.args[0] for name, node in placeholders.items()
    )


def arguments_of(model: nn.Module, batch: Any, where: str) -> Arguments:
    """Return the arguments that `batch` of a data set stands for.

    A tensor is the input; of a tuple or list the first item is; a dict holds keywords. Models that
    take a list of images, as detectors do, may be given just that, or tuples that start with it.

    Raises:
        CalibrationError: it is anything else.
    """
    if isinstance(batch, dict):
        return _by_keyword(model, batch, where)
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    takes_lists = not isinstance(model, fx.GraphModule)
    if takes_lists and isinstance(batch, list) and _are_images(batch):
        first = batch
    if not (isinstance(first, Tensor) or (takes_lists and isinstance(first, (tuple, list, dict)))):
        raise CalibrationError(
            f"{where}: got a {type(batch).__name__}: give tensors, tuples or lists that start with "
            "one, or dicts of keywords; or pass forward=lambda model, batch: … to calibrate"
        )
    if isinstance(model, fx.GraphModule):
        names = model.graph.find_nodes(op="placeholder")
        return positional(model, {str(names[0].target): first}, where)
    try:
        return bind_arguments(model.forward, (first,), {})
    except TypeError as error:
        raise CalibrationError(
            f"{where}: {type(model).__name__} cannot be called with one argument: {error}; give "
            "dicts of keywords"
        ) from error


def _are_images(batch: list[Any]) -> bool:
    return bool(batch) and all(isinstance(each, Tensor) and each.dim() == 3 for each in batch)


def _by_keyword(model: nn.Module, batch: dict[str, Any], where: str) -> Arguments:
    if isinstance(model, fx.GraphModule):
        return positional(model, batch, where)
    try:
        return bind_arguments(model.forward, (), batch)
    except TypeError as error:
        raise CalibrationError(f"{where}: {type(model).__name__}.forward: {error}") from error


def keep_inputs(model: nn.Module, max_samples: int) -> None:
    """Let `model` keep what it is called with."""
    name = free_name(model, "kept_inputs")
    if not isinstance(model, fx.GraphModule):
        keeper = InputKeeper(max_samples)
        model.add_module(name, keeper)
        model.register_forward_pre_hook(keeper.keep_call, with_kwargs=True)
        return
    placeholders = model.graph.find_nodes(op="placeholder")
    model.add_submodule(name, InputKeeper(max_samples, _unbatched_rank(model)))
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
            for key, hook in list(model._forward_pre_hooks.items()):
                if getattr(hook, "__self__", None) is keeper:
                    del model._forward_pre_hooks[key]
                    model._forward_pre_hooks_with_kwargs.pop(key, None)


def _unbatched_rank(gm: fx.GraphModule) -> int | None:
    """Return how many axes the first input has without a batch axis, if a layer reads it."""
    first = next(iter(gm.graph.find_nodes(op="placeholder")))
    for node in gm.graph.nodes:
        layer, source = module_of(gm, node), data_input(node)
        while source is not None and isinstance(module_of(gm, source), (Observer, ChannelMean)):
            source = data_input(source)
        if layer_type(layer) is not None and source is first:
            assert layer is not None
            weight = layer.weight
            assert isinstance(weight, Tensor)
            return max(1, weight.dim() - 1)
    return None


def take_samples(
    batches: Iterable[Arguments], max_samples: int, unbatched_rank: int | None = None
) -> list[Arguments]:
    """Return the first batches, until they hold `max_samples`; the last one is cut."""
    taken, room = [], max_samples
    for batch in batches:
        if num_samples(batch, unbatched_rank) == 0:
            continue
        taken.append(cut(batch, room, unbatched_rank))
        room -= num_samples(batch, unbatched_rank)
        if room <= 0:
            break
    return taken


def in_batches_of(
    batches: Sequence[Arguments], size: int, unbatched_rank: int | None = None
) -> list[Arguments]:
    """Return the same samples in batches of `size`.

    Only where one tensor is all that differs from batch to batch, and its samples have one shape;
    else `batches` as they are.
    """
    if not batches or not all(_is_uniform(batches[0], batch) for batch in batches):
        return list(batches)
    position = next(i for i, each in enumerate(batches[0]) if isinstance(each, Tensor))
    if batches[0][position].dim() in (1, unbatched_rank):
        return list(batches)
    parts = itertools.chain.from_iterable(torch.split(batch[position], size) for batch in batches)
    grouped: list[list[Tensor]] = [[]]
    for part in parts:
        if sum(map(len, grouped[-1])) + len(part) > size:
            grouped.append([])
        grouped[-1].append(part)
    rest = batches[0]
    return [
        (*rest[:position], group[0] if len(group) == 1 else torch.cat(group), *rest[position + 1 :])
        for group in grouped
        if group
    ]


def _is_uniform(first: Arguments, batch: Arguments) -> bool:
    """Say whether a batch is like the first but for the values of its one tensor."""
    if sum(isinstance(each, Tensor) for each in batch) != 1:
        return False
    for one, other in zip(first, batch, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.dim() == 0 or one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
                return False
        elif one is not other and not (_is_plain(one) and _is_plain(other) and one == other):
            return False
    return True


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def collect_inputs(
    model: nn.Module, options: Reconstruction, batches: Iterable[Any] | None
) -> list[Arguments]:
    """Return what a reconstruction runs on, in batches of its size.

    Args:
        model: the prepared one.
        options: how many samples, and how many at a time.
        batches: the data; None: what `model` kept in calibration.

    Raises:
        CalibrationError: there is none.
    """
    keeper = find_keeper(model)
    assert keeper is not None, "prepare keeps inputs for every recipe with a reconstruction"
    rank = keeper.unbatched_rank
    kept = keeper.batches
    if batches is not None:
        given = (arguments_of(model, batch, f"batch {n}") for n, batch in enumerate(batches))
        kept = take_samples(given, options.samples, rank)
    samples = sum(num_samples(batch, rank) for batch in kept)
    if samples == 0:
        raise CalibrationError(
            "convert: there is nothing to learn roundings from: run fxquant.calibrate(prepared, "
            "batches) before, or give convert(prepared, batches)"
        )
    if samples < options.samples:
        _logger.warning(
            "reconstruction: %d samples, fewer than the %d asked for", samples, options.samples
        )
    return in_batches_of(kept, options.batch_size, rank)
