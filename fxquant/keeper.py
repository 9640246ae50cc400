"""A module that keeps what a model is called with, for what needs data after calibration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxquant.values import map_leaves

Arguments = tuple[Any, ...]


class InputKeeper(nn.Module):
    """Keep what the model is called with, on the CPU.

    A call of it has all inputs of the model as arguments, and no result: a node in a graph; where
    the model is not one graph, `keep_call` as a hook. Copies share what was kept so far; it is
    never written to.

    Args:
        max_samples: to keep; the batch that exceeds them is cut.
        unbatched_rank: the number of axes of an input that is one sample, without a batch axis;
            None if that is not known.
    """

    _is_impure = True  # no one uses its result, and it must run all the same

    def __init__(self, max_samples: int, unbatched_rank: int | None = None) -> None:
        super().__init__()
        self.max_samples = max_samples
        self.unbatched_rank = unbatched_rank
        self.batches: list[Arguments] = []
        self.num_samples = 0

    def forward(self, *inputs: Any) -> None:
        """Keep copies of `inputs`, cut to what is still missing."""
        room = self.max_samples - self.num_samples
        if room > 0 and num_samples(inputs, self.unbatched_rank) > 0:
            kept = cut(inputs, room, self.unbatched_rank)
            self.batches.append(map_leaves(kept, _copy))
            self.num_samples += num_samples(kept, self.unbatched_rank)

    def keep_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what `model` is about to be called with: a forward pre-hook with keywords."""
        self(*bind_arguments(model.forward, args, kwargs))

    def forget_from(self, number: int) -> None:
        """Forget the batches from `number` on."""
        del self.batches[number:]
        self.num_samples = sum(num_samples(batch, self.unbatched_rank) for batch in self.batches)

    def __deepcopy__(self, memo: dict[int, Any]) -> InputKeeper:
        copied = InputKeeper(self.max_samples, self.unbatched_rank)
        copied.batches, copied.num_samples = list(self.batches), self.num_samples
        return copied

    def extra_repr(self) -> str:
        """Return how many samples are kept."""
        return f"{self.num_samples} of at most {self.max_samples} samples"


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


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


def num_samples(inputs: Arguments, unbatched_rank: int | None = None) -> int:
    """Return the length of the first tensor or list of tensors.

    1 where there is none, or the tensor has no batch axis.
    """
    first = next((found for each in inputs if (found := _samples(each)) is not None), None)
    if first is None or (isinstance(first, Tensor) and first.dim() in (0, unbatched_rank)):
        return 1
    return len(first)


def cut(inputs: Arguments, room: int, unbatched_rank: int | None = None) -> Arguments:
    """Return the first `room` samples of all that has as many as the first tensor or list."""
    size = num_samples(inputs, unbatched_rank)
    if size <= room:
        return inputs
    return tuple(
        each[:room] if _has_samples(each) and len(each) == size else each for each in inputs
    )


def _samples(value: Any) -> Tensor | list[Tensor] | tuple[Tensor, ...] | None:
    """Return what of an argument has as many items as there are samples; None if nothing has.

    A tensor, the first one of a list or dict, or a list of samples: of images that differ in size.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or not value:
        return None
    tensors = all(isinstance(each, Tensor) for each in value)
    return value if tensors and value[0].dim() <= 3 else _samples(value[0])


def _has_samples(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim() > 0)
