"""What PyTorch computes for a node, as its own operators with results in the program's memory.

    mul = operator.mul(conv, gate)     →     aten.mul.out(conv, gate, out=memory)

The node is called once while its operators are recorded. So a run makes no tensor, calls no module,
and looks up no attribute; the operators, and with them the bits, are the graph's own. Views of the
memory are made once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxquant.numerics import tensors_in
from fxquant.programs.buffers import Buffers, is_dense, place_of

_VALUES_DECIDE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
_COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)


class Unrecordable(Exception):
    """An operator that cannot write into the program's memory, or draws, or decides something."""


def record(run: Callable[[], Any], buffers: Buffers) -> tuple[Any, list[Callable[[], Tensor]]]:
    """Return what a call returns, in memory of `buffers`, and the calls that write it there.

    Args:
        run: a call whose tensors lie in the same places at every run.
        buffers: of which memory is taken, also for what lies between.

    Raises:
        Unrecordable: some operator cannot be recorded.
    """
    recorder = _Recorder(buffers)
    with recorder:
        result = run()
    return result, recorder.calls


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator below PyTorch's functions, and runs it with results in the memory."""

    def __init__(self, buffers: Buffers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], Tensor]] = []
        self._buffers = buffers

    def __torch_dispatch__(
        self,
        operator: torch._ops.OpOverload,
        types: Any,
        arguments: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if torch.Tag.inplace_view in operator.tags:  # of what this very node computes
            return operator(*arguments, **options)
        if operator._schema.is_mutable or _VALUES_DECIDE & {*operator.tags}:
            raise Unrecordable(str(operator))
        found = operator(*arguments, **options)
        if not isinstance(found, Tensor):
            raise Unrecordable(str(operator))
        read = tensors_in((arguments, options))
        if not read or place_of(found) in map(place_of, read):
            return found  # a constant, or a view
        if not is_dense(found):
            raise Unrecordable(str(operator))
        result = self._buffers.like(found)
        call = _writing(operator, arguments, options, result)
        call()
        self.calls.append(call)
        return result.detach()  # whose strides may be changed: the call keeps its own


def _writing(
    operator: torch._ops.OpOverload,
    arguments: Sequence[Any],
    options: dict[str, Any],
    result: Tensor,
) -> Callable[[], Tensor]:
    """Return the call of an operator that writes into `result`."""
    if operator in _COPIES:
        return functools.partial(result.copy_, arguments[0])
    found = _with_out(operator)
    if found is None:
        raise Unrecordable(str(operator))
    variant, name = found
    return functools.partial(variant, *arguments, **options, **{name: result})


@functools.cache
def _with_out(operator: torch._ops.OpOverload) -> tuple[torch._ops.OpOverload, str] | None:
    """Return the variant that computes the same into a tensor, and that argument's name.

    Not one that PyTorch makes of the operator and a copy.
    """
    wanted = [(each.name, str(each.type)) for each in operator._schema.arguments]
    packet = operator.overloadpacket
    for overload in packet.overloads():
        variant = getattr(packet, overload)
        outs = [each.name for each in variant._schema.arguments if each.is_out]
        rest = [
            (each.name, str(each.type)) for each in variant._schema.arguments if not each.is_out
        ]
        if len(outs) == 1 and rest == wanted and _is_of_the_cpu(variant):
            return variant, outs[0]
    return None


def _is_of_the_cpu(operator: torch._ops.OpOverload) -> bool:
    name = operator._schema.name
    full = f"{name}.{operator._schema.overload_name}"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(full, "CPU"))
