"""Post-training quantization of PyTorch models, as graph passes over `torch.fx`.

    import fxquant

    prepared = fxquant.prepare(model)                  # traced, folded, observers in place
    fxquant.calibrate(prepared, loader)                # a few batches, no labels
    quantized = fxquant.convert(prepared)              # fake-quantized: integers inside

    lowered = fxquant.lower(quantized)                 # on int8 kernels
    fxquant.export_onnx(quantized, "model.onnx", x)    # for other runtimes

    print(fxquant.text(quantized))                     # the graph, one line a node
    print(fxquant.report(quantized))                   # what each call lost

    fxquant.save(quantized, "model.fxq")               # packed, no pickle; back with fxquant.load

`Recipe` says what to quantize how. Single passes are in `fxquant.passes`; `trace` makes the graph
that they work on, `Pipeline` puts them in a row, and `Pass` is what a new one derives from.
"""

from fxquant.allocation import Allocation, allocate
from fxquant.api import calibrate, convert, prepare, quantize
from fxquant.budget import Budget
from fxquant.capture import trace
from fxquant.compare import compare
from fxquant.errors import (
    CalibrationError,
    CaptureError,
    FxquantError,
    LoweringError,
    PassError,
    RecipeError,
    StorageError,
)
from fxquant.export import export_onnx
from fxquant.frontier import frontier
from fxquant.lower import lower, to_qdq
from fxquant.pipeline import Pass, Pipeline
from fxquant.recipe import Recipe
from fxquant.reconstruction import Reconstruction
from fxquant.report import Report, report
from fxquant.rule import Rule
from fxquant.search import Search, search
from fxquant.sensitivity import measure_sensitivities
from fxquant.spec import TensorSpec
from fxquant.storage import load, save
from fxquant.text import text

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Budget",
    "CalibrationError",
    "CaptureError",
    "FxquantError",
    "LoweringError",
    "Pass",
    "PassError",
    "Pipeline",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Report",
    "Rule",
    "Search",
    "StorageError",
    "TensorSpec",
    "allocate",
    "calibrate",
    "compare",
    "convert",
    "export_onnx",
    "frontier",
    "load",
    "lower",
    "measure_sensitivities",
    "prepare",
    "quantize",
    "report",
    "save",
    "search",
    "text",
    "to_qdq",
    "trace",
]
