"""From a model to graphs: whole, or its largest traceable regions."""

from fxquant.capture.attributes import KEY
from fxquant.capture.given_models import require_module, unwrapped, why_opaque
from fxquant.capture.naming import Untraced, find_regions, node_name, path_of, target_name
from fxquant.capture.partition import capture
from fxquant.capture.region import Region, build_region, reserve_hook_numbers
from fxquant.capture.requirements import require
from fxquant.capture.tracing import trace

__all__ = [
    "KEY",
    "Region",
    "Untraced",
    "build_region",
    "capture",
    "find_regions",
    "node_name",
    "path_of",
    "require",
    "require_module",
    "reserve_hook_numbers",
    "target_name",
    "trace",
    "unwrapped",
    "why_opaque",
]
