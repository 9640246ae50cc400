"""What all ranks must have in common: compared before any work, and again at the end.

A fact is a name, such as `recipe.reconstruction.steps` or `model.conv1.weight`, and a short text;
of a tensor the text holds a digest of its values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxquant.capture.naming import find_regions
from fxquant.errors import RankError
from fxquant.graph.printing import text
from fxquant.modules.own import own_modules
from fxquant.recipe.recipe import Recipe
from fxquant.streaming.distributed import copy_from_first_rank, gather_objects, num_ranks
from fxquant.streaming.identity import digest

Facts = dict[str, str]
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def facts_of_recipe(recipe: Recipe) -> Facts:
    """Return every field, but for what changes no result."""
    if recipe.reconstruction is not None:
        recipe = replace(recipe, reconstruction=replace(recipe.reconstruction, max_bytes=None))
    return dict(_fields("recipe", recipe))


def _fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _fields(f"{name}.{each.name}", getattr(value, each.name))
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from _fields(f"{name}[{number}]", item)
    else:
        yield name, repr(value)


def facts_of_model(model: nn.Module) -> Facts:
    """Return what the modules are, and the parameters and buffers, but for those that watch."""
    watching = {f"{name}." for name, module in own_modules(model) if module.watches}
    modules = {
        _joined("model", name): _plain(f"{type(each).__name__}({each.extra_repr()})")
        for name, each in model.named_modules()
        if f"{name}." not in watching
    }
    tensors = {
        _joined("model", name): _fact_of_tensor(each)
        for name, each in _named_tensors(model)
        if f"{name.rpartition('.')[0]}." not in watching
    }
    return modules | tensors


def facts_of_graphs(model: nn.Module) -> Facts:
    """Return the lines of all graphs."""
    return {
        f"line {number} of the graph{path and ' of '}{path}": _plain(line.split("#")[0])
        for path, gm in find_regions(model).items()
        for number, line in enumerate(text(gm).splitlines(), 1)
    }


def require_same(name: str, facts: Mapping[str, str]) -> None:
    """Compare the facts of all ranks.

    Args:
        name: of what is to be done, for the message.
        facts: of this rank, in the order in which differences are told.

    Raises:
        RankError: they differ: which, and how.
    """
    ranks = gather_objects(dict(facts), name)
    keys = dict.fromkeys(itertools.chain.from_iterable(ranks))
    told = {key: [each.get(key, "missing") for each in ranks] for key in keys}
    differing = [f"{key} is {_by_rank(each)}" for key, each in told.items() if len(set(each)) > 1]
    if differing:
        more = f" (and {len(differing) - 1} differences more)" if len(differing) > 1 else ""
        raise RankError(
            f"{name}: the ranks do not have the same to work on: {differing[0]}{more}: give all of "
            "them the same model, recipe and example_inputs"
        )


def _by_rank(texts: list[str]) -> str:
    """Say which ranks have which text.

    >>> _by_rank(["100", "200", "100"])
    '100 on rank 0 and 2, 200 on rank 1'
    """
    ranks: dict[str, list[str]] = {}
    for number, each in enumerate(texts):
        ranks.setdefault(each, []).append(str(number))
    return ", ".join(f"{each} on rank {' and '.join(own)}" for each, own in ranks.items())


def take_first_ranks(model: nn.Module) -> None:
    """Give all ranks rank 0's parameters and buffers, where processors round differently.

    Raises:
        RankError: they do not have the same names, types and sizes.
    """
    if num_ranks() == 1:
        return
    tensors = dict(_named_tensors(model))
    require_same("the quantized model", {name: _size_of(each) for name, each in tensors.items()})
    digests = gather_objects({name: digest([each]) for name, each in tensors.items()})
    for name, each in tensors.items():
        if len({own[name] for own in digests}) > 1:
            taken = each.detach().clone().contiguous()
            copy_from_first_rank(taken)
            each.data.copy_(taken)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _fact_of_tensor(tensor: Tensor) -> str:
    if is_lazy(tensor) or tensor.is_meta:
        return "without values"
    return f"{_size_of(tensor)} with the digest {digest([tensor])[:12]}"


def _size_of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _plain(line: str) -> str:
    return _ADDRESS.sub("", line).strip()


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))
