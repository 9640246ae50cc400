"""What a reconstruction's result depends on, so that a checkpoint of another one is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from fxquant.checkpoint import digest
from fxquant.distributed import gather_objects, num_ranks
from fxquant.fakequant import FakeQuantize, QuantizedLayer
from fxquant.reconstruction import Reconstruction
from fxquant.text import text


def identity_of(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    options: Reconstruction,
    data: Iterable[Sequence[tuple[Any, ...]]],
) -> dict[str, str]:
    """Return digests of all that the result depends on."""
    specs = [
        module.weight_spec if isinstance(module, QuantizedLayer) else module.spec
        for module in gm.modules()
        if isinstance(module, (QuantizedLayer, FakeQuantize))
    ]
    values = itertools.chain.from_iterable(itertools.chain.from_iterable(data))
    own = digest(itertools.chain(gm.state_dict().values(), values))
    return {
        "recipe": digest([replace(options, max_bytes=None), *specs]),  # bytes change no result
        "model": digest([text(reference), *reference.state_dict().values()]),
        "data": digest(gather_objects(own)),
        "ranks": str(num_ranks()),
    }
