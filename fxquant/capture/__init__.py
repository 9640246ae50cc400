"""From a model to graphs: whole, or its largest traceable regions."""

from fxquant.capture.attention.scores import attention_weights_of
from fxquant.capture.attributes import KEY
from fxquant.capture.call_notes import CallNotes
from fxquant.capture.example import Call, call_of
from fxquant.capture.given_models import (
    copy_without_wrappers,
    require_module,
    unwrapped,
    why_opaque,
)
from fxquant.capture.graph_state import StatefulGraph, holds_numbers, runs_graphs, with_state
from fxquant.capture.naming import Untraced, find_regions, node_name, path_of, target_name
from fxquant.capture.partition import Captured, capture
from fxquant.capture.recording.objects import filled
from fxquant.capture.recording.requirements import require, requirements
from fxquant.capture.recording.sources import forget_sources
from fxquant.capture.recording.state import left_as_it_is
from fxquant.capture.region import Region, build_region, reserve_hook_numbers
from fxquant.capture.tracer import trace_graph
from fxquant.capture.tracing import trace

__all__ = [
    "KEY",
    "Call",
    "CallNotes",
    "Captured",
    "Region",
    "StatefulGraph",
    "Untraced",
    "attention_weights_of",
    "build_region",
    "call_of",
    "capture",
    "copy_without_wrappers",
    "filled",
    "find_regions",
    "forget_sources",
    "holds_numbers",
    "left_as_it_is",
    "node_name",
    "path_of",
    "require",
    "require_module",
    "requirements",
    "reserve_hook_numbers",
    "runs_graphs",
    "target_name",
    "trace",
    "trace_graph",
    "unwrapped",
    "why_opaque",
    "with_state",
]
