"""What all modules that fxquant puts into graphs have in common.

Each says which stage of a model it belongs to, and what the printed graph shows of it, so that
nobody outside asks for its type. Where buffers must keep their dtype, `FixedDtypeModule` does it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

Stage = Literal["prepared", "converted", "lowered"]


class OwnModule(nn.Module):
    """A module of fxquant's own; tracing never looks inside."""

    stage: ClassVar[Stage | None] = None
    """Of a model that holds such a module; None where it tells nothing."""

    def facts(self) -> str:
        """Return what the printed graph says of the module, behind the name of its class."""
        return self.extra_repr()


class FixedDtypeModule(OwnModule):
    """A module whose buffers follow `.to(device)` but not `.half()` or `.double()`.

    Scales and statistics need float32: a float16 scale has 11 bits and underflows below 6e-8.
    """

    follows_dtype: tuple[str, ...] = ()
    """Names of the buffers that do follow the dtype."""
    sized_by_data: tuple[str, ...] = ()
    """Names of the buffers that get their shape from the first batch, or from a state dict."""

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
