"""Graphs over whole data sets: piece by piece, on disk, on many ranks, resumable."""

from fxquant.streaming.checkpoint import Checkpoint
from fxquant.streaming.distributed import (
    copy_from_first_rank,
    copy_from_rank,
    from_all_ranks,
    gather_objects,
    num_ranks,
    object_from_first_rank,
    rank,
    sum_over_ranks,
    together,
)
from fxquant.streaming.identity import identity_of
from fxquant.streaming.long_runs import Run, UnitsBar, bar
from fxquant.streaming.rank_facts import (
    facts_of_graphs,
    facts_of_model,
    facts_of_recipe,
    require_same,
    take_first_ranks,
)
from fxquant.streaming.running import (
    Arguments,
    copied_to,
    device_of,
    interpreted,
    laid_out_for,
    positional,
    run,
)
from fxquant.streaming.said_once import said_once
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore

__all__ = [
    "Arguments",
    "Checkpoint",
    "Run",
    "Stream",
    "UnitsBar",
    "ValueStore",
    "bar",
    "copied_to",
    "copy_from_first_rank",
    "copy_from_rank",
    "device_of",
    "facts_of_graphs",
    "facts_of_model",
    "facts_of_recipe",
    "from_all_ranks",
    "gather_objects",
    "identity_of",
    "interpreted",
    "laid_out_for",
    "num_ranks",
    "object_from_first_rank",
    "positional",
    "rank",
    "require_same",
    "run",
    "said_once",
    "sum_over_ranks",
    "take_first_ranks",
    "together",
]
