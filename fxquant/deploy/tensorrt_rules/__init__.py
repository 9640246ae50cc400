"""Whether TensorRT takes an ONNX file's integers, by its documented rules."""

from fxquant.deploy.tensorrt_rules.checker import check
from fxquant.deploy.tensorrt_rules.violation import Violation

__all__ = ["Violation", "check"]
