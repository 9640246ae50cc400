"""What quantization lost: tables, and models compared node by node."""

from fxquant.reporting.agreement import Agreement, has_decisions, largest
from fxquant.reporting.changes import changes
from fxquant.reporting.model_card import card
from fxquant.reporting.node_by_node import compare
from fxquant.reporting.running_copies import copy_to_run
from fxquant.reporting.table import Report, report

__all__ = [
    "Agreement",
    "Report",
    "card",
    "changes",
    "compare",
    "copy_to_run",
    "has_decisions",
    "largest",
    "report",
]
