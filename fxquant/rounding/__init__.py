"""Learned roundings: of layers, and of residual blocks."""

from fxquant.rounding.blocks.find import Block, find_blocks, is_quantizer
from fxquant.rounding.blocks.learner import BlockLearner
from fxquant.rounding.blocks.samples import Samples
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.learners import Learned, learn
from fxquant.rounding.pool import RowPool
from fxquant.rounding.side_by_side import SideBySide
from fxquant.rounding.subgraphs import Call, Subgraph, find_subgraphs

__all__ = [
    "Block",
    "BlockLearner",
    "Call",
    "Learned",
    "Rounding",
    "RowPool",
    "Samples",
    "SideBySide",
    "Subgraph",
    "find_blocks",
    "find_subgraphs",
    "is_quantizer",
    "learn",
]
