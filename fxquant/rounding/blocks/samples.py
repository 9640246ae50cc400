"""What goes into a block and what should come out, sample by sample, some set aside to judge by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.blocks.region import Path
from fxquant.rounding.blocks.windows import Cut, Windows

_MAX_BYTES = 2 << 30  # of a block's samples: one of ResNet-50's first block has 4.8 MB


# As many samples a step as in BRECQ and QDrop, fewer where each has many positions.
_MOST, _FEWEST, _POSITIONS = 32, 8, 3072


@dataclass(frozen=True)
class Batch:
    """Some samples of one path through a block; (samples, …), or one batch that stays whole."""

    path: Path
    inputs: Tensor
    """x̂, the quantized network's value of the path's entry."""
    floats: Tensor
    """x, the float network's."""
    targets: Tensor
    """The float network's value of the path's exit; of a window, where that is right."""
    cut: Cut | None = None
    """Which part of the samples it is; None: all."""
    context: tuple[Any, ...] = ()
    """The values of the path's context."""

    def beside(self, dtype: torch.dtype) -> list[Any]:
        """Return the context, floats in `dtype`."""
        floats = [isinstance(each, Tensor) and each.is_floating_point() for each in self.context]
        return [
            each.to(dtype) if is_float else each
            for each, is_float in zip(self.context, floats, strict=True)
        ]

    def judged_part(self, y: Tensor) -> Tensor:
        """Return what of the block's output `targets` are for."""
        return y if self.cut is None else self.cut.of_outputs(y)


class _Group:
    """Samples of one shape, of one path: of each x̂, the target, the context, and x if it is kept.

    What of the context is no tensor is the same for all.
    """

    def __init__(
        self, path: Path, is_whole: bool, windows: Windows | None, context: Sequence[Any]
    ) -> None:
        self._path, self._is_whole, self._windows = path, is_whole, windows
        self._context = [None if isinstance(each, Tensor) else (each,) for each in context]
        self._parts: list[tuple[Tensor, ...]] = []
        self._tensors: tuple[Tensor, ...] = ()
        self.learned = self.judged = torch.empty(0, dtype=torch.int64)

    def add(self, values: tuple[Tensor, ...]) -> None:
        self._parts.append(values)

    def close(self, every: int) -> None:
        """Put the samples together; set each `every`-th aside."""
        self._tensors = tuple(torch.cat(parts) for parts in zip(*self._parts, strict=True))
        self._parts.clear()
        numbers = torch.arange(len(self._tensors[0]))
        is_judged = numbers % every == every - 1
        self.learned, self.judged = numbers[~is_judged], numbers[is_judged]

    def has_only_finite(self, place: int) -> bool:
        low, high = torch.aminmax(self._tensors[place])  # both are NaN if a value is
        return bool(torch.isfinite(high - low))

    @property
    def power(self) -> float:
        """The mean square of the targets."""
        return float(self._tensors[1].to(torch.float32).square().mean())

    def drawn(self, index: Tensor, generator: torch.Generator) -> Batch:
        """Return the samples at `index`, or a random window of them."""
        return self.batch(index, None if self._windows is None else self._windows.draw(generator))

    def batch(self, index: Tensor, cut: Cut | None = None) -> Batch:
        """Return the samples at `index`, or a part of each; of whole batches the first."""
        inputs, targets, *others = self._tensors
        if cut is not None:  # before anything is copied; then there is no context
            targets = cut.of_targets(targets)
            inputs, *others = (cut.of_inputs(each) for each in (inputs, *others))
        index = index[0] if self._is_whole else index.to(inputs.device)
        inputs, targets, *others = (each[index] for each in (inputs, targets, *others))
        if cut is not None:
            inputs, *others = (_channels_last(each) for each in (inputs, *others))
        tensors = iter(others)
        context = tuple(next(tensors) if each is None else each[0] for each in self._context)
        floats = next(tensors, inputs)
        return Batch(self._path, inputs, floats, targets, cut, context)

    @property
    def size(self) -> int:
        """How many samples make a batch."""
        if self._is_whole:
            return 1
        target = self._tensors[1]
        channels = target.shape[1 if target.dim() >= 4 else -1]
        positions = max(1, target[0].numel() // channels)
        if self._windows is not None:
            positions = min(positions, self._windows.num_positions)
        return min(_MOST, max(_FEWEST, math.ceil(_POSITIONS / positions)))


class Samples:
    """The samples of one block, gathered batch by batch.

    Args:
        name: of the block, for errors.
        num_samples: that will come, over all paths.
        options: how many to keep, how many to set aside, and the seed.
        number: of the block, so that each draws on its own.
    """

    def __init__(self, name: str, num_samples: int, options: Reconstruction, number: int) -> None:
        self._name, self._num_samples, self._options = name, num_samples, options
        self.generator = options.generator(number)
        self._groups: dict[object, _Group] = {}
        self.power = 0.0
        """The mean square of the targets, of all shapes alike."""
        self._shares = torch.empty(0)

    def add(
        self,
        path: Path,
        inputs: Tensor,
        floats: Tensor,
        targets: Tensor,
        num_samples: int | None,
        windows: Windows | None = None,
        context: Sequence[Any] = (),
    ) -> None:
        """Keep a share of one batch.

        Args:
            path: which way through the block.
            inputs: x̂.
            floats: x.
            targets: the float network's value of the path's exit.
            num_samples: of the batch; None, where the path takes no other number of them. There,
                and where the tensors' first axis is another, the batch stays whole.
            windows: how the samples may be cut up; None: not at all.
            context: the values of the path's context.
        """
        beside = [each for each in context if isinstance(each, Tensor)]
        values = [inputs, targets, *beside, *[floats] * (self._options.drop > 0)]
        is_whole = any(each.dim() == 0 or len(each) != num_samples for each in values)
        if num_samples is not None and not is_whole:
            bytes_each = sum(each[:1].nbytes for each in values)
            wanted = min(self._options.samples, _MAX_BYTES / bytes_each)
            share = min(1.0, wanted / self._num_samples)
            values = [each[: math.ceil(share * num_samples)] for each in values]
        else:
            values = [each[None] for each in values]
        same = repr([each for each in context if not isinstance(each, Tensor)])
        key = (path, is_whole, *(each.shape[1:] for each in values), same)
        windows = None if is_whole else windows
        group = self._groups.setdefault(key, _Group(path, is_whole, windows, context))
        group.add(tuple(values))

    def close(self) -> None:
        """Set samples aside; then they can be drawn.

        Raises:
            CalibrationError: they hold NaN or infinity.
        """
        every = max(2, round(1 / self._options.held_out))
        for group in self._groups.values():
            group.close(every)
            for place, what in enumerate(("input", "float output")):
                if not group.has_only_finite(place):
                    raise CalibrationError(
                        f"{self._name}: NaN or infinity in its {what} on the calibration data: look"
                        " at the calls before it, or leave it in float with a Rule(…, skip=True)"
                    )
        groups = list(self._groups.values())
        self.power = sum(group.power for group in groups) / max(len(groups), 1)
        self._shares = torch.tensor([float(len(group.learned)) for group in groups])
        if not any(len(group.judged) for group in groups):  # too few to set one aside
            for group in groups:
                group.judged = group.learned

    def draw(self) -> Batch:
        """Return random samples to learn from."""
        groups = list(self._groups.values())
        group = groups[int(torch.multinomial(self._shares, 1, generator=self.generator))]
        index = group.learned
        if len(index) > group.size:
            index = index[torch.randint(len(index), (group.size,), generator=self.generator)]
        return group.drawn(index, self.generator)

    def judged(self) -> Iterator[Batch]:
        """Yield the samples that were set aside."""
        for group in self._groups.values():
            for index in torch.split(group.judged, group.size):
                yield group.batch(index)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
