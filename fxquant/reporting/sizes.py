"""What a model's parameters take: in floating point, and with its integers packed to their bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fxquant.modules.own import as_own
from fxquant.modules.packed_weights import PackedWeights
from fxquant.numerics.packing import packed_size

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Sizes:
    """Bytes of all parameters: weights, biases, scales, and what stays in float."""

    before: int
    """Where all weights are in float32; batch norms are folded already."""
    after: int
    """With integer weights packed, as `fxquant.save` writes them."""

    def __str__(self) -> str:
        if self.before == self.after:
            return f"{short_bytes(self.before)} of parameters"
        share = self.after / max(self.before, 1)
        return (
            f"{short_bytes(self.before)} of parameters in float, {short_bytes(self.after)} packed "
            f"({100 * share:.3g} %)"
        )


def short_bytes(number: float) -> str:
    """Return a number of bytes to be read.

    >>> short_bytes(46_800_000), short_bytes(12)
    ('46.8 MB', '12 bytes')
    """
    size, unit = next((each for each in _UNITS if number >= each[0]), (1, "bytes"))
    return f"{number / size:.3g} {unit}"


def sizes_of(model: nn.Module) -> Sizes:
    """Return what the parameters of a prepared, a converted or a lowered model take."""
    before = after = 0
    counted: set[tuple[int, tuple[int, ...]]] = set()
    for module in model.modules():
        if as_own(module).stage == "prepared" or as_own(module).watches:
            continue
        for name, tensor in _tensors(module):
            key = tensor.data_ptr(), tuple(tensor.shape)  # one that is held twice is stored once
            if tensor.numel() == 0 or key in counted:
                continue
            counted.add(key)
            own = tensor.numel() * tensor.element_size()
            if isinstance(module, PackedWeights) and name == "weight_integers":
                before += 4 * tensor.numel()
                after += packed_size(tensor.numel(), module.weight_spec.bits)
            elif as_own(module).stage is not None and name != "bias":
                after += own  # scales and zero-points, which a float model has not
            else:
                before, after = before + own, after + own
    return Sizes(before, after)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what the module itself holds, and files keep."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer
