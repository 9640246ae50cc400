"""What all modules that fxquant puts into graphs have in common.

Each says what others need to know of it (which stage of a model it belongs to, what the printed
graph shows of it, what calibration left in it), so that nobody outside asks for its type. Where
buffers must keep their dtype, `FixedDtypeModule` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fxquant.modules.figures import Figures, LearnedRounding
from fxquant.recipe.spec import TensorSpec

Stage = Literal["prepared", "converted", "lowered"]


class OwnModule(nn.Module):
    """A module of fxquant's own; tracing never looks inside."""

    stage: ClassVar[Stage | None] = None
    """Of a model that holds such a module; None where it tells nothing."""
    watches: ClassVar[bool] = False
    """Whether it does nothing but keep, in calibration, something of what goes by."""

    rounds: ClassVar[bool] = False
    """Whether it rounds the activation that goes by."""
    rounding: LearnedRounding | None = None
    """What learning the rounding of its weight gave; None: it is rounded to nearest, or there is
    none."""

    @property
    def fixed_spec(self) -> TensorSpec | None:
        """What the range of its integers was chosen by; None where that is left to each batch."""
        return None

    @property
    def seen_rank(self) -> int | None:
        """How many axes the tensors had that went by; None if that is not known, or varied."""
        return None

    def facts(self) -> str:
        """Return what the printed graph says of the module, behind the name of its class."""
        return self.extra_repr()

    def weight_figures(self) -> Figures | None:
        """Return what a report shows of its integer weight; None if it has none."""
        return None

    def input_figures(self) -> list[Figures]:
        """Return what a report shows of the integers that it takes."""
        return []

    def output_figures(self) -> list[Figures]:
        """Return what a report shows of the rounding that it does."""
        return []

    def why_no_integers(self) -> str | None:
        """Return why no integers compute what it simulates, and what to choose; None: they can."""
        return None

    def numbers(self) -> dict[str, float | int]:
        """Return what of its parameters is no tensor: of the state of the graph that calls it."""
        return {}

    def take_numbers(self, numbers: dict[str, Any]) -> None:
        """Compute with these `numbers()` from now on."""

    def form(self) -> str:
        """Return what a state must be of that fits the module, besides its tensors' shapes."""
        return type(self).__name__

    def state(self) -> dict[str, Any]:
        """Return what calibration left in the module on this rank, on the CPU, to be pickled."""
        return {name: buffer.to("cpu", copy=True) for name, buffer in self.named_buffers()}

    def take_in(self, states: Sequence[dict[str, Any]]) -> None:
        """Become what all ranks saw; `states` are their `state()`s."""


_FOREIGN = OwnModule()


def as_own(module: nn.Module | None) -> OwnModule:
    """Return `module` itself; for one that is not fxquant's, one that knows nothing.

    >>> as_own(nn.ReLU()).stage is None
    True
    """
    return module if isinstance(module, OwnModule) else _FOREIGN


def own_modules(model: nn.Module) -> Iterator[tuple[str, OwnModule]]:
    """Yield the modules of `model` that are fxquant's own, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, OwnModule):
            yield name, module


class FixedDtypeModule(OwnModule):
    """A module whose buffers follow `.to(device)` but not `.half()` or `.double()`.

    Scales and statistics need float32: a float16 scale has 11 bits and underflows below 6e-8.
    """

    follows_dtype: tuple[str, ...] = ()
    """Names of the buffers that do follow the dtype."""
    sized_by_data: tuple[str, ...] = ()
    """Names of the buffers that get their shape from the first batch, or from a state dict."""

    def follow(self, x: Tensor) -> None:
        """Move the buffers to where `x` is: a model may lie on any device, or on several."""
        if any(buffer.device != x.device for buffer in self.buffers()):
            self.to(x.device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in self.sized_by_data:
            loaded, own = state_dict.get(prefix + name), self._buffers[name]
            if loaded is not None and own is not None:
                self._buffers[name] = own.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        fixed = {
            name: buffer
            for name, buffer in self._buffers.items()
            if buffer is not None and name not in self.follows_dtype
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in fixed.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self
