"""What a model is called with: from a batch to arguments, and the calls that are kept for later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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

    A tensor is the input; of a tuple or list the first items are, as many as the model needs, or
    those of its first item, where that is a tuple or list of as many; a mapping holds keywords.
    Models that take a list of images, as detectors do, may be given just that, or tuples that
    start with it.

    Raises:
        CalibrationError: it is anything else.
    """
    if isinstance(batch, Mapping):
        return _by_keyword(model, dict(batch), where)
    inputs = _inputs_in(model, batch)
    kinds = (Tensor, tuple, list, dict) if _takes_containers(model) else Tensor
    if not (inputs and all(isinstance(each, kinds) for each in inputs)):
        raise CalibrationError(
            f"{where}: got a {type(batch).__name__}: give tensors, tuples or lists that start with "
            "one, or dicts of keywords; or pass forward=lambda model, batch: … to calibrate"
        )
    if isinstance(model, fx.GraphModule):
        names = [str(node.target) for node in model.graph.find_nodes(op="placeholder")]
        return positional(model, dict(zip(names, inputs, strict=False)), where)
    try:
        return bind_arguments(model.forward, tuple(inputs), {})
    except TypeError as error:
        count = "one argument" if len(inputs) == 1 else f"{len(inputs)} arguments"
        raise CalibrationError(
            f"{where}: {type(model).__name__} cannot be called with {count}: {error}; give dicts "
            "of keywords"
        ) from error


def example_of(model: nn.Module, example_inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
    """Return what `example_inputs` gives to a model: arguments by position, or keywords.

    The items of a tuple are arguments, if the model takes as many. A list, and any other tuple, is
    a batch as a loader gives it, with what `arguments_of` takes for inputs in front.
    """
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    if isinstance(example_inputs, tuple) and _takes(model, example_inputs):
        return example_inputs
    return tuple(_inputs_in(model, example_inputs))


def _takes(model: nn.Module, arguments: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(model.forward).bind(*arguments)
    except TypeError:
        return False
    return True


def _inputs_in(model: nn.Module, batch: Any) -> list[Any]:
    """Return what of a batch are the model's inputs."""
    if not isinstance(batch, (tuple, list)):
        return [batch]
    needed = _num_needed(model)
    if needed < 2:
        return [batch] if _is_one_input(model, batch) else list(batch[:1])
    first: Any = batch[0] if batch else None
    is_pair = isinstance(first, (tuple, list)) and len(first) == needed  # [[left, right], labels]
    return list(first if is_pair else batch[:needed])


def _num_needed(model: nn.Module) -> int:
    """Return how many arguments a call must give by position."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in kinds and each.default is each.empty for each in parameters)


def _takes_containers(model: nn.Module) -> bool:
    """Say whether an argument may be a tuple, list or dict of tensors: a graph asks its length."""
    if not isinstance(model, fx.GraphModule):
        return True
    placeholders = model.graph.find_nodes(op="placeholder")
    return any(user.target is len for node in placeholders for user in node.users)


def _is_one_input(model: nn.Module, batch: Sequence[Any]) -> bool:
    """Say whether a tuple or list is the one input itself: of images, or of what a graph takes."""
    are_tensors = bool(batch) and all(isinstance(each, Tensor) for each in batch)
    if isinstance(model, fx.GraphModule):
        return are_tensors and _takes_containers(model)
    return are_tensors and isinstance(batch, list) and all(each.dim() == 3 for each in batch)


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
