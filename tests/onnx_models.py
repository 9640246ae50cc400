"""Small quantized ONNX models, in a few lines of ONNX's own text."""

from typing import Any

import numpy as np
import pytest

onnx: Any = pytest.importorskip("onnx")

_RNG = np.random.default_rng(0)
_CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.02),
    "z": np.int8(0),
    "w": _RNG.integers(-8, 8, (4, 4, 1, 1)).astype(np.int8),
    "m": _RNG.integers(-8, 8, (4, 4)).astype(np.int8),
    "t": np.full(4, 0.1, np.float32),
    "v": np.zeros(4, np.int8),
    "b": _RNG.normal(size=4).astype(np.float32),
}
QUANTIZED = "xq = QuantizeLinear(x, s, z)\nxd = DequantizeLinear(xq, s, z)"
WEIGHT = "wd = DequantizeLinear<axis=0>(w, t, v)"
LAYER = f"{QUANTIZED}\n{WEIGHT}\ny = Conv(xd, wd, b)"


def onnx_model(text: str, *, opset: int = 20, **constants: Any) -> Any:
    """Return a model from `x`, (n, 4, 8, 8), to `out` that computes as `text` says.

    Constants are a scale s, a zero-point z, weights w (4, 4, 1, 1) and m (4, 4) with scales t and
    zero-points v, a bias b; `constants` replaces some of them, or gives others.
    """
    made = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"main (float[n, 4, 8, 8] x) => (float out) {{\n{text}\n}}"
    )
    for name, value in (_CONSTANTS | constants).items():
        is_tensor = isinstance(value, onnx.TensorProto)
        tensor = value if is_tensor else onnx.numpy_helper.from_array(np.asarray(value), name)
        tensor.name = name
        made.graph.initializer.append(tensor)
    return made
