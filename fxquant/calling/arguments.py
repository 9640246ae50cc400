"""What a model is called with: from a batch to arguments, and the calls that are kept for later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from operator import getitem
from typing import Any

from torch import Tensor, fx, nn

from fxquant.calling.batch_hints import way_from_keys, way_to_tensors
from fxquant.calling.description import in_brackets
from fxquant.calling.explanation import explained
from fxquant.capture.example import Call
from fxquant.errors import CalibrationError
from fxquant.numerics.containers import cloned
from fxquant.streaming.running import Arguments

Forward = Callable[[nn.Module, Any], Any]
"""Calls a model with a batch; what it returns are the model's outputs."""
_LEAVE_OUT = "leave out what it does not take, or pass forward=lambda model, batch: … to calibrate"


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
            f"{', '.join(placeholders)}: {_LEAVE_OUT}"
        )
    missing = [name for name, node in placeholders.items() if not (name in keywords or node.args)]
    if missing:
        raise CalibrationError(
            f"{where}: the model also needs {', '.join(missing)}: give a dict of keywords"
        )
    return tuple(
        keywords[name] if name in keywords else node.args[0] for name, node in placeholders.items()
    )


def call_of_batch(model: nn.Module, batch: Any, where: str) -> Call:
    """Return the call that `batch` of a data set stands for.

    A tensor is the input; of a tuple or list the first items are, as many as the model needs, or
    those of its first item, where that is a tuple or list of as many; a mapping holds keywords, or,
    where none of them is an argument of a model that takes but one, is that argument. Models that
    take a list of images, as detectors do, may be given just that, or tuples that start with it.
    Of a `forward(*inputs)` the input is the first item, if only labels are behind it: tensors of
    fewer axes; where the first item is a tuple or list itself, its items are.

    Raises:
        CalibrationError: it is anything else.
    """
    given = _given(model, batch, where)
    args, kwargs = given.args, given.kwargs
    if isinstance(model, fx.GraphModule):
        names = [str(node.target) for node in model.graph.find_nodes(op="placeholder")]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        return Call(positional(model, named, f"{where} {in_brackets(batch)}"))
    try:
        return _bound(model.forward, args, kwargs)
    except TypeError as error:
        parameters, kind = inspect.signature(model.forward).parameters, type(model).__name__
        if kwargs:
            unknown = kwargs.keys() - parameters.keys()
            way = _LEAVE_OUT if unknown else "give dicts with what it needs"
            raise CalibrationError(
                f"{where} {in_brackets(batch)}: {kind}.forward({', '.join(parameters)}): {error}: "
                f"{way}"
            ) from error
        count = "one argument" if len(args) == 1 else f"{len(args)} arguments"
        raise CalibrationError(
            f"{where} {in_brackets(batch)}: {kind} cannot be called with {count}: {error}; give "
            "dicts of keywords"
        ) from error


def plain_call(model: nn.Module, batch: Any, where: str) -> Call:
    """Return `call_of_batch`; of keywords, and of what is decorated, without what it leaves out.

    Decorators of transformers add keywords, and would find them given twice.
    """
    call = call_of_batch(model, batch, where)
    is_plain = isinstance(batch, Mapping) or hasattr(model.forward, "__wrapped__")
    is_graph = isinstance(model, fx.GraphModule)
    return _given(model, batch, where) if is_plain and not is_graph else call


def _given(model: nn.Module, batch: Any, where: str) -> Call:
    """Return what a batch gives, and nothing else."""
    if isinstance(batch, Mapping) and _names_arguments(model, batch):
        return Call(kwargs=dict(batch))
    return Call(_checked_inputs(model, batch, where))


def arguments_of(model: nn.Module, batch: Any, where: str) -> Arguments:
    """Return the arguments of `call_of_batch`, all by position.

    Raises:
        CalibrationError: there is no such call, or it gives some by keyword only.
    """
    call = call_of_batch(model, batch, where)
    if call.kwargs:
        raise CalibrationError(f"{where}: {type(model).__name__}.forward: {_only_by_keyword(call)}")
    return call.args


def call_on_batch(model: nn.Module, batch: Any, where: str, forward: Forward | None = None) -> Any:
    """Return what `model` returns for a copy of `batch`, which it may write to.

    Args:
        model: what is called.
        batch: as `call_of_batch` takes it, or `forward`.
        where: for errors.
        forward: calls the model with the batch, if not None.

    Raises:
        CalibrationError: there is no such call, or the model raised an error, which is its cause.
    """
    copied = cloned(batch)
    if forward is not None:
        with explained(where, batch):
            return forward(model, copied)
    call = plain_call(model, copied, where)
    with explained(where, batch):
        return model(*call.args, **call.kwargs)


def example_of(model: nn.Module, example_inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
    """Return what `example_inputs` gives to a model: arguments by position, or keywords.

    The items of a tuple are arguments, if the model takes as many. A list, and any other tuple, is
    a batch as a loader gives it, with what `call_of_batch` takes for inputs in front.
    """
    if isinstance(example_inputs, Mapping) and _names_arguments(model, example_inputs):
        return dict(example_inputs)
    if isinstance(example_inputs, tuple) and _takes(model, example_inputs):
        return example_inputs
    return tuple(_inputs_in(model, example_inputs, "example_inputs"))


def _takes(model: nn.Module, arguments: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(model.forward).bind(*arguments)
    except TypeError:
        return False
    return True


def _checked_inputs(model: nn.Module, batch: Any, where: str) -> Arguments:
    """Return what of a batch are the model's inputs, if they are tensors, or hold some."""
    inputs = _inputs_in(model, batch, where)
    kinds = (Tensor, tuple, list, Mapping) if _takes_items(model) else Tensor
    if not (inputs and all(isinstance(each, kinds) for each in inputs)):
        is_mapping = isinstance(batch, Mapping)
        way = way_from_keys(model, batch) if is_mapping else way_to_tensors(batch, where)
        raise CalibrationError(f"{where} {in_brackets(batch)}: {way}")
    return tuple(inputs)


def _inputs_in(model: nn.Module, batch: Any, where: str) -> list[Any]:
    """Return what of a batch are the model's inputs."""
    if not isinstance(batch, (tuple, list)):
        return [batch]
    needed = _num_needed(model)
    first: Any = batch[0] if batch else None
    if _takes_any_number(model):
        if isinstance(first, (tuple, list)):
            return list(first)
        _require_labels(batch, where)
    if needed < 2:
        return [batch] if _is_one_input(model, batch) else list(batch[:1])
    is_pair = isinstance(first, (tuple, list)) and len(first) == needed  # [[left, right], labels]
    return list(first if is_pair else batch[:needed])


def _num_needed(model: nn.Module) -> int:
    """Return how many arguments a call must give by position."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in kinds and each.default is each.empty for each in parameters)


def _takes_any_number(model: nn.Module) -> bool:
    """Say whether `forward` has no arguments but `*args`."""
    kinds = {each.kind for each in inspect.signature(model.forward).parameters.values()}
    is_any = inspect.Parameter.VAR_POSITIONAL in kinds
    return is_any and kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _require_labels(batch: Sequence[Any], where: str) -> None:
    """Raise if a model of any number of inputs may be meant to get more than the first item."""
    others = [each for each in batch[1:] if isinstance(each, Tensor)]
    if isinstance(batch[0], Tensor) and any(each.dim() >= batch[0].dim() for each in others):
        raise CalibrationError(
            f"{where}: forward takes any number of arguments, so it cannot be told how many of the "
            f"batch's {len(batch)} items are inputs: give them as one item, [[x, y], labels], or "
            "give example_inputs=(x, y)"
        )


def _names_arguments(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Say whether a mapping holds keywords, and is not itself the only argument of the model."""
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return takes_all or not parameters.keys().isdisjoint(batch) or _num_needed(model) != 1


def _takes_items(model: nn.Module) -> bool:
    """Say whether an argument may be a tuple, list or dict: a graph takes items of it."""
    if not isinstance(model, fx.GraphModule):
        return True
    placeholders = model.graph.find_nodes(op="placeholder")
    return any(user.target in (len, getitem) for node in placeholders for user in node.users)


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


def bind_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments:
    """Return what a call gives to `function`, defaults filled in, as positional arguments.

    Raises:
        TypeError: it takes no such arguments.
        CalibrationError: it takes some by keyword only.
    """
    call = _bound(function, args, kwargs)
    if call.kwargs:
        raise CalibrationError(
            f"forward: {_only_by_keyword(call)}, and inputs are kept by position, for what learns "
            "from them: quantize a module whose forward takes them so, and calls this one"
        )
    return call.args


def _bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the call with all by position that can be, and by keyword what is no default."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    defaults = {name: each.default for name, each in signature.parameters.items()}
    by_keyword = {
        name: value
        for name, value in bound.kwargs.items()
        if name not in defaults or value is not defaults[name]
    }
    return Call(bound.args, by_keyword)


def _only_by_keyword(call: Call) -> str:
    return f"{', '.join(call.kwargs)} can be given by keyword only"
