"""Buffers that move with their module but keep their dtype."""

from __future__ import annotations

from typing import Any

from torch import nn


class FixedDtypeModule(nn.Module):
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
