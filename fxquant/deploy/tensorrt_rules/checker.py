"""All rules on one file."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from fxquant.deploy.onnx_links import Links
from fxquant.deploy.tensorrt_rules.integers import INTEGERS
from fxquant.deploy.tensorrt_rules.operators import OPERATORS, opset
from fxquant.deploy.tensorrt_rules.speed import SPEED
from fxquant.deploy.tensorrt_rules.violation import Violation
from fxquant.deploy.tensorrt_rules.weights import WEIGHTS
from fxquant.errors import LoweringError

if TYPE_CHECKING:
    from onnx import ModelProto


def check(model: ModelProto | str | os.PathLike[str]) -> list[Violation]:
    """Return what in an ONNX model breaks TensorRT's rules: errors first, then advice on speed.

    An empty list says that the documented rules hold, not that TensorRT has built the model:
    whether there is a kernel for every shape, only it can tell. Needs neither it nor a GPU.

    Args:
        model: the model, or its file.

    Raises:
        LoweringError: a package is missing: `pip install fxquant[onnx]`.
    """
    if importlib.util.find_spec("onnx") is None:
        raise LoweringError("tensorrt_rules.check: onnx not installed: pip install fxquant[onnx]")
    import onnx

    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(os.fspath(model))
    links = Links(loaded)
    found = list(opset(loaded))
    for rule in (*OPERATORS, *INTEGERS, *WEIGHTS, *SPEED):
        found += rule(links)
    return found


def require_rules(model: ModelProto, caller: str) -> None:
    """Raise if TensorRT would not take a model, or read it as something else.

    Raises:
        LoweringError: with all reasons.
    """
    broken = [str(each) for each in check(model) if not each.is_advice]
    if broken:
        raise LoweringError(f"{caller}: not for TensorRT:\n" + "\n".join(broken))
