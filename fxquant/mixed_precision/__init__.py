"""Which layer gets how many bits."""

from fxquant.mixed_precision.allocation import Allocation, allocate, require_scipy
from fxquant.mixed_precision.pareto import frontier
from fxquant.mixed_precision.resolve import set_bits, with_bits
from fxquant.mixed_precision.sensitivity import measure_sensitivities

__all__ = [
    "Allocation",
    "allocate",
    "frontier",
    "measure_sensitivities",
    "require_scipy",
    "set_bits",
    "with_bits",
]
