"""Which layer gets how many bits."""

from fxquant.mixed_precision.allocation import Allocation, allocate, require_scipy, rules_of
from fxquant.mixed_precision.options import Option, Side
from fxquant.mixed_precision.pareto import frontier
from fxquant.mixed_precision.placing import place_probes
from fxquant.mixed_precision.probes import ActivationProbe, Tap, WeightProbe
from fxquant.mixed_precision.resolve import set_bits, with_bits
from fxquant.mixed_precision.sensitivity import measure_sensitivities, sensitivities_on

__all__ = [
    "ActivationProbe",
    "Allocation",
    "Option",
    "Side",
    "Tap",
    "WeightProbe",
    "allocate",
    "frontier",
    "measure_sensitivities",
    "place_probes",
    "require_scipy",
    "rules_of",
    "sensitivities_on",
    "set_bits",
    "with_bits",
]
