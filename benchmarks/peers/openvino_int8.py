"""An ONNX file in OpenVINO: as it is, or quantized by NNCF.

NNCF's defaults are kept: per-channel weights, fast bias correction. The latency hint is given, and
float operations stay in float32, where OpenVINO would take bfloat16 on processors that have it:
nobody else in the table does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]

from benchmarks.peers.serving import Images, Ready, Refused, Task, brief, serve

_INTEGERS = ("u8", "i8")


def prepare(task: Task) -> Ready:
    """Return the compiled network; variants: "as-it-is", "nncf"."""
    try:
        model = openvino.convert_model(task.model)
    except Exception as error:  # whatever OpenVINO says of this network
        raise Refused(f"cannot read it: {brief(error)}") from error
    if task.variant == "nncf":
        model = quantize(model, task.calibration)
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": task.threads,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )

    def run(images: Images) -> Sequence[np.ndarray]:
        results = compiled(images)
        return [results[output] for output in compiled.outputs]

    return Ready(run, convolutions_in_integers(compiled.get_runtime_model()))


def convolutions_in_integers(runtime_model: Any) -> str:
    """Return how many of the convolutions work on integers, as "20 of 21"."""
    facts = [operation.get_rt_info() for operation in runtime_model.get_ordered_ops()]
    precisions = [
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) in ("Convolution", "Deconvolution")
    ]
    return f"{sum(each in _INTEGERS for each in precisions)} of {len(precisions)}"


def quantize(model: Any, calibration: list[Images]) -> Any:
    """Return the network with NNCF's fake-quantize nodes, which OpenVINO runs in int8."""
    import nncf  # type: ignore[import-not-found]  # slow, and the other variant does without

    return nncf.quantize(model, nncf.Dataset(calibration), subset_size=len(calibration))


if __name__ == "__main__":
    serve(prepare)
