"""What a reconstruction's result depends on, so that a checkpoint of another one is refused."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.printing import text
from fxquant.modules.own import own_modules
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.streaming.distributed import gather_objects, num_ranks


def identity_of(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    options: Reconstruction,
    data: Iterable[Sequence[tuple[Any, ...]]],
) -> dict[str, str]:
    """Return digests of all that the result depends on."""
    specs = [module.fixed_spec for _, module in own_modules(gm) if module.fixed_spec is not None]
    values = itertools.chain.from_iterable(itertools.chain.from_iterable(data))
    own = digest(itertools.chain(gm.state_dict().values(), values))
    return {
        "recipe": digest([replace(options, max_bytes=None), *specs]),  # bytes change no result
        "model": digest([text(reference), *reference.state_dict().values()]),
        "data": digest(gather_objects(own)),
        "ranks": str(num_ranks()),
    }


def digest(values: Iterable[Any]) -> str:
    """Return a digest of tensors, containers of them, and whatever else has a `repr`, in order."""
    state = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, Tensor):
            state.update(f"{value.dtype} {tuple(value.shape)}:".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            state.update(f"dict {digest(value)} {digest(value.values())}".encode())
        elif isinstance(value, (tuple, list)):
            state.update(f"{type(value).__name__} {digest(value)}".encode())
        elif is_dataclass(value) and not isinstance(value, type):  # a repr leaves out defaults
            own = digest(getattr(value, each.name) for each in fields(value))
            state.update(f"{type(value).__name__} {own}".encode())
        else:
            text = repr(value)
            state.update(f"{len(text)} {text}".encode())
    return state.hexdigest()
