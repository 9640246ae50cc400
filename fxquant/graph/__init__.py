"""What nodes compute, what is known of them, and how graphs are changed and printed."""

from fxquant.graph.axes import axis_before, known_ranks
from fxquant.graph.chains import Chain, find_chains, insert_after, take_out
from fxquant.graph.channel_moments import Moments, channel_moments_of, range_of
from fxquant.graph.journal import Journal, read_python_multiply_adds, read_recipe, read_untraced, write_journals
from fxquant.graph.mutations import changed_while_read, is_inplace, may_be_view, not_followed, read_instead, run_out_of_place, views_of
from fxquant.graph.operation_table import Call, argument, is_size
from fxquant.graph.operations import batchnorm_of, data_input, is_add, is_batchnorm, is_layer, is_overridden, layer_of, module_of, operation_of, readers, reads_values, relu_bounds, source_of, sources_of_values
from fxquant.graph.pairs import Pair, find_pairs
from fxquant.graph.placement import ADDED_COSTS, JOINED_COSTS, PARTED_COSTS, Placement
from fxquant.graph.printing import text
from fxquant.graph.records import Record, annotate, record, refuse, value_of
from fxquant.graph.selection import call_name, check_rules, record_calls_with_weights_inside, select_calls
from fxquant.graph.states import require_converted, require_float, require_prepared
from fxquant.graph.submodules import Submodules, attribute_of, free_name, free_place, own_all, users_by_module, why_not_changeable

__all__ = [
    "ADDED_COSTS",
    "Call",
    "Chain",
    "JOINED_COSTS",
    "Journal",
    "Moments",
    "PARTED_COSTS",
    "Pair",
    "Placement",
    "Record",
    "Submodules",
    "annotate",
    "argument",
    "attribute_of",
    "axis_before",
    "batchnorm_of",
    "call_name",
    "changed_while_read",
    "channel_moments_of",
    "check_rules",
    "data_input",
    "find_chains",
    "find_pairs",
    "free_name",
    "free_place",
    "insert_after",
    "is_add",
    "is_batchnorm",
    "is_inplace",
    "is_layer",
    "is_overridden",
    "is_size",
    "known_ranks",
    "layer_of",
    "may_be_view",
    "module_of",
    "not_followed",
    "operation_of",
    "own_all",
    "range_of",
    "read_instead",
    "read_python_multiply_adds",
    "read_recipe",
    "read_untraced",
    "readers",
    "reads_values",
    "record",
    "record_calls_with_weights_inside",
    "refuse",
    "relu_bounds",
    "require_converted",
    "require_float",
    "require_prepared",
    "run_out_of_place",
    "select_calls",
    "source_of",
    "sources_of_values",
    "take_out",
    "text",
    "users_by_module",
    "value_of",
    "views_of",
    "why_not_changeable",
    "write_journals",
]
