"""Tensors in, tensors out: scales and zero-points, histograms, clips, ranges, packed bits."""

from fxquant.numerics.activation_ranges import Statistics, activation_range
from fxquant.numerics.affine import Affine, AffineNumbers, Grid, activation_grid, along_axis
from fxquant.numerics.channel_bits import channel_bits, uneven_affine
from fxquant.numerics.channel_ranges import (
    ChannelStatistics,
    batch_range,
    channel_moments,
    channel_range,
)
from fxquant.numerics.containers import (
    cloned,
    holds_the_same,
    is_own_container,
    items_of,
    made_like,
    map_leaves,
    tensors_in,
)
from fxquant.numerics.cross_entropy import cross_entropy_range
from fxquant.numerics.decibels import decibels, sqnr
from fxquant.numerics.differences import Difference, find_differences
from fxquant.numerics.histogram import NUM_BINS, Histogram, count_values
from fxquant.numerics.packing import axis_order, in_order, pack_bits, packed_size, unpack_bits
from fxquant.numerics.weight_ranges import weight_range

__all__ = [
    "NUM_BINS",
    "Affine",
    "AffineNumbers",
    "ChannelStatistics",
    "Difference",
    "Grid",
    "Histogram",
    "Statistics",
    "activation_grid",
    "activation_range",
    "along_axis",
    "axis_order",
    "batch_range",
    "channel_bits",
    "channel_moments",
    "channel_range",
    "cloned",
    "count_values",
    "cross_entropy_range",
    "decibels",
    "find_differences",
    "holds_the_same",
    "in_order",
    "is_own_container",
    "items_of",
    "made_like",
    "map_leaves",
    "pack_bits",
    "packed_size",
    "sqnr",
    "tensors_in",
    "uneven_affine",
    "unpack_bits",
    "weight_range",
]
