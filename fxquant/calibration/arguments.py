"""What a model is called with: from a batch to arguments, and the calls that are kept for later."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from fxquant.errors import CalibrationError
from fxquant.streaming.running import Arguments


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


def bind_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """Return what a call gives to `function`, defaults filled in, as positional arguments.

    Raises:
        TypeError: it takes no such arguments, or takes some by keyword only.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    by_keyword = {name: value for name, value in bound.kwargs.items() if value is not None}
    if by_keyword:
        raise TypeError(f"{', '.join(by_keyword)} can be given by keyword only")
    return bound.args
