"""Out of the simulation: integer kernels on this machine, and files for other runtimes."""

from fxquant.deploy.export import export_onnx
from fxquant.deploy.lowering import lower, to_qdq

__all__ = [
    "export_onnx",
    "lower",
    "to_qdq",
]
