"""What the observers of a model saw, what it was called with, and the ranges chosen from it."""

from fxquant.calibration.counted_call import (
    GIVEN,
    count_first_call,
    counted_first_call,
    is_counted,
    stop_counting,
)
from fxquant.calibration.first_calls import (
    FirstCalls,
    compare_first_calls,
    is_compared,
    stop_comparing,
    uncompared_source,
)
from fxquant.calibration.input_keeper import (
    InputKeeper,
    collect_inputs,
    find_keeper,
    keep_inputs,
    require_takes_all,
    stop_keeping_inputs,
    unbatched_rank_of,
)
from fxquant.calibration.nonfinite import require_finite
from fxquant.calibration.observed import (
    FloatValues,
    Observers,
    check_calibrated,
    combine_observers,
    erase_unread,
    find_observers,
    has_one_range,
    observers_of_values,
    place_observers,
    was_called,
)
from fxquant.calibration.proof import prove, reference_of
from fxquant.calibration.quantizer_choice import Quantizer, noise_of, quantizer_of, sharing_cost
from fxquant.calibration.region_calls import are_aligned, record_calls, regions_in_order
from fxquant.calibration.regrouping import takes_size

__all__ = [
    "GIVEN",
    "FirstCalls",
    "FloatValues",
    "InputKeeper",
    "Observers",
    "Quantizer",
    "are_aligned",
    "check_calibrated",
    "collect_inputs",
    "combine_observers",
    "compare_first_calls",
    "count_first_call",
    "counted_first_call",
    "erase_unread",
    "find_keeper",
    "find_observers",
    "has_one_range",
    "is_compared",
    "is_counted",
    "keep_inputs",
    "noise_of",
    "observers_of_values",
    "place_observers",
    "prove",
    "quantizer_of",
    "record_calls",
    "reference_of",
    "regions_in_order",
    "require_finite",
    "require_takes_all",
    "sharing_cost",
    "stop_comparing",
    "stop_counting",
    "stop_keeping_inputs",
    "takes_size",
    "unbatched_rank_of",
    "uncompared_source",
    "was_called",
]
