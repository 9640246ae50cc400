"""What the regions of a model are called with while the model runs.

A whole data set goes through the model once, and of one region every call is kept: a tuple of
positional arguments, defaults filled in. So a region can be streamed (`fxquant.streaming.stream`)
as if it were a model of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor, fx, nn

from fxquant.calling.arguments import positional
from fxquant.calling.batching import Batches
from fxquant.capture.naming import find_regions
from fxquant.capture.region import Region
from fxquant.numerics.containers import map_leaves, tensors_in
from fxquant.streaming.distributed import object_from_first_rank
from fxquant.streaming.running import Arguments, run
from fxquant.streaming.value_store import ValueStore

_MAX_FAR = 0.01  # of the samples: 2-bit quantization loses less of a sample than half its power


class StoredCalls(Sequence[Arguments]):
    """The arguments of many calls, kept in a `ValueStore`, read back one by one."""

    def __init__(self, store: ValueStore) -> None:
        self._store = store
        self._numbers: list[int] = []
        self._key = object()

    def append(self, arguments: Arguments, number: int) -> None:
        """Keep the arguments of one call, under a number of its own."""
        self._store.put(self._key, number, arguments)
        self._numbers.append(number)

    def sort(self) -> None:
        """Bring the calls into the order of their numbers."""
        self._numbers.sort()

    def drop(self) -> None:
        """Forget all calls."""
        for number in self._numbers:
            self._store.drop(self._key, number)
        self._numbers.clear()

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Arguments: ...
    @overload
    def __getitem__(self, index: slice) -> list[Arguments]: ...
    def __getitem__(self, index: int | slice) -> Arguments | list[Arguments]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        arguments = self._store.get(self._key, self._numbers[index])
        assert isinstance(arguments, tuple)
        return arguments


def record_calls(
    model: nn.Module, region: Region, batches: Sequence[Arguments], store: ValueStore
) -> StoredCalls:
    """Run `model` on `batches`, once, and return what `region` is called with.

    All first calls come first, then all second ones, and so on: so samples of one batch, which go
    through a detector's head level by level, stay apart. Calls with no sample are left out.
    """
    calls = StoredCalls(store)
    number = in_batch = 0

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal in_batch
        names = [str(node.target) for node in region.graph.find_nodes(op="placeholder")]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        arguments = positional(region, named, region.path)
        if Batches([arguments]).num_samples > 0:
            calls.append(map_leaves(arguments, _copied), in_batch * len(batches) + number)
        in_batch += 1

    handle = region.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for _ in run(model, batches):
            number, in_batch = number + 1, 0
    finally:
        handle.remove()
    calls.sort()
    return calls


def _copied(value: Any) -> Any:
    """Return a copy: the code around the region may write to what it gave it."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def are_aligned(one: Sequence[Arguments], other: Sequence[Arguments]) -> bool:
    """Say whether two models call a region with the same things, but for small errors.

    They do not where the code in front of it selects or sorts, as a detector does with proposals:
    then sample for sample the arguments have nothing to do with each other.
    """
    if len(one) != len(other):
        return False
    far = total = 0
    for mine, theirs in zip(one, other, strict=True):
        tensors, others = tensors_in(mine), tensors_in(theirs)
        if [each.shape for each in tensors] != [each.shape for each in others]:
            return False
        for a, b in zip(tensors, others, strict=True):
            if a.is_floating_point() and a.dim() > 0:
                error = (a - b).flatten(1).square().sum(1) if a.dim() > 1 else (a - b).square()
                power = b.flatten(1).square().sum(1) if b.dim() > 1 else b.square()
                far += int((error > 0.5 * power).sum())
                total += len(error)
    return far <= _MAX_FAR * total


def regions_in_order(model: nn.Module, batches: Sequence[Arguments]) -> dict[str, fx.GraphModule]:
    """Return the regions in the order in which `model` calls them on the first batch.

    Those that it does not call there come last. A model that is one graph is its own only region.
    """
    regions = find_regions(model)
    if model in regions.values():
        return regions
    order: dict[str, fx.GraphModule] = {}

    def note(region: nn.Module, _: Any) -> None:
        assert isinstance(region, Region)
        order[region.path] = region  # a name that is there already keeps its place

    handles = [gm.register_forward_pre_hook(note) for gm in regions.values()]
    try:
        for _ in run(model, batches[:1]):
            pass
    finally:
        for handle in handles:
            handle.remove()
    paths = object_from_first_rank(list(order | regions))
    return {path: regions[path] for path in paths}
