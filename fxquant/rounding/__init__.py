"""Learned roundings: of layers, and of residual blocks."""

from fxquant.rounding.blocks.find import Block, find_blocks
from fxquant.rounding.blocks.learner import BlockLearner
from fxquant.rounding.blocks.sides import BlocksSideBySide, ends_in_float
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.in_turn import TITLES, learn_in_turn
from fxquant.rounding.methods.learners import Learned, learn
from fxquant.rounding.pool import RowPool
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.smoothing.choice import best_smoothing
from fxquant.rounding.smoothing.inputs import LayerInput, find_inputs
from fxquant.rounding.smoothing.scales import Smoothing
from fxquant.rounding.smoothing.seen import look_at
from fxquant.rounding.smoothing.unchanged import SameResults
from fxquant.rounding.subgraphs import Call, Subgraph, find_subgraphs

__all__ = [
    "TITLES",
    "Block",
    "BlockLearner",
    "BlocksSideBySide",
    "Call",
    "LayerInput",
    "LayersSideBySide",
    "Learned",
    "Lesson",
    "Rounding",
    "RowPool",
    "SameResults",
    "Smoothing",
    "Subgraph",
    "best_smoothing",
    "ends_in_float",
    "find_blocks",
    "find_inputs",
    "find_subgraphs",
    "learn",
    "learn_in_turn",
    "look_at",
]
