"""Post-training quantization of PyTorch models, as graph passes over `torch.fx`.

    import fxquant

    prepared = fxquant.prepare(model)                  # traced, folded, observers in place
    fxquant.calibrate(prepared, loader)                # a few batches, no labels
    quantized = fxquant.convert(prepared)              # fake-quantized: integers inside

    lowered = fxquant.lower(quantized)                 # on int8 kernels
    fxquant.export_onnx(quantized, "model.onnx", x)    # for other runtimes

    print(fxquant.text(quantized))                     # the graph, one line a node
    print(fxquant.report(quantized))                   # what each call lost
    print(fxquant.analyze(model, loader, recipe))      # what costs the outputs most, what helps

    fxquant.save(quantized, "model.fxq")               # packed, no pickle; back with fxquant.load

`Recipe` says what to quantize how, and `recipe_of` which one a model was made with. Single passes
are in `fxquant.passes`; `trace` makes the graph that they work on, `Pipeline` puts them in a row,
and `Pass` is what a new one derives from.
"""

from torch import nn  # noqa: F401  `eval(repr(recipe), vars(fxquant))` looks for module types

from fxquant.analysis.result import Analysis
from fxquant.api import calibrate, convert, prepare, quantize
from fxquant.capture.tracing import trace
from fxquant.deploy.export import export_onnx
from fxquant.deploy.lowering import lower, to_qdq
from fxquant.diagnosis import analyze
from fxquant.errors import (
    CalibrationError,
    CaptureError,
    FxquantError,
    LoweringError,
    PassError,
    RankError,
    RecipeError,
    StorageError,
)
from fxquant.graph.printing import text
from fxquant.graph.states import recipe_of
from fxquant.ladder import Search, search
from fxquant.mixed_precision.allocation import Allocation, allocate
from fxquant.mixed_precision.pareto import frontier
from fxquant.mixed_precision.sensitivity import measure_sensitivities
from fxquant.passes.pipeline import Pass, Pipeline
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.spec import TensorSpec
from fxquant.recipe.target import TARGETS, Target
from fxquant.reporting.model_card import card
from fxquant.reporting.node_by_node import compare
from fxquant.reporting.table import Report, report
from fxquant.storage.files import load, save

__version__ = "0.1.0"

__all__ = [
    "TARGETS",
    "Allocation",
    "Analysis",
    "Budget",
    "CalibrationError",
    "CaptureError",
    "FxquantError",
    "LoweringError",
    "Pass",
    "PassError",
    "Pipeline",
    "RankError",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Report",
    "Rule",
    "Search",
    "StorageError",
    "Target",
    "TensorSpec",
    "allocate",
    "analyze",
    "calibrate",
    "card",
    "compare",
    "convert",
    "export_onnx",
    "frontier",
    "load",
    "lower",
    "measure_sensitivities",
    "prepare",
    "quantize",
    "recipe_of",
    "report",
    "save",
    "search",
    "text",
    "to_qdq",
    "trace",
]


def __dir__() -> list[str]:
    """Return what is public: the wings are imported by their files, and none of them is listed."""
    return sorted([*__all__, "__version__", "passes"])
