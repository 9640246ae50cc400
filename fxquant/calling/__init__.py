"""What a model is called with, and what to say where it cannot take that."""

from fxquant.calling.arguments import (
    Forward,
    arguments_of,
    bind_arguments,
    call_on_batch,
    positional,
)
from fxquant.calling.batching import Batches
from fxquant.calling.description import described, described_layer, in_brackets, sizes_of_layer
from fxquant.calling.examples import (
    Example,
    batch_call,
    check_folding,
    example_arguments,
    example_call,
    example_calls,
    run_examples,
)
from fxquant.calling.explanation import explained
from fxquant.calling.loaders import is_empty, no_batches, require_batches
from fxquant.calling.trial import copy_to_call, detached_copy, outputs_of, run_calls

__all__ = [
    "Batches",
    "Example",
    "Forward",
    "arguments_of",
    "batch_call",
    "bind_arguments",
    "call_on_batch",
    "check_folding",
    "copy_to_call",
    "described",
    "described_layer",
    "detached_copy",
    "example_arguments",
    "example_call",
    "example_calls",
    "explained",
    "in_brackets",
    "is_empty",
    "no_batches",
    "outputs_of",
    "positional",
    "require_batches",
    "run_calls",
    "run_examples",
    "sizes_of_layer",
]
