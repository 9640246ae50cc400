"""An ONNX file in onnxruntime: as it is, or quantized by its own `quantize_static`.

That is the recommended way for x86 with VNNI: shapes inferred and batch norms folded by
`quant_pre_process`, then quantize and dequantize nodes (QDQ), uint8 activations by their least and
greatest values, int8 weights with a scale for each output channel.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.serving import Images, Ready, Task, serve

# By name: mypy complains of `import` differently where they are installed and where they are not.
onnx: Any = import_module("onnx")
onnxruntime: Any = import_module("onnxruntime")
quantization: Any = import_module("onnxruntime.quantization")
preprocessing: Any = import_module("onnxruntime.quantization.shape_inference")

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER = ("QLinearConv", "ConvInteger")


def prepare(task: Task) -> Ready:
    """Return a session; variants: "as-it-is", "quantize"."""
    with tempfile.TemporaryDirectory() as folder:
        if task.variant == "as-it-is":
            return session(task.model, task.threads, Path(folder))
        quantized = Path(folder) / "quantized.onnx"
        quantize(task, quantized)
        return session(quantized, task.threads, Path(folder))


def session(path: Path, threads: int, folder: Path) -> Ready:
    """Return what runs the file, and how many convolutions it runs in integers.

    Args:
        path: of the file.
        threads: of its operations.
        folder: for the graph that onnxruntime makes of the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    loaded = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (given,) = loaded.get_inputs()

    def run(images: Images) -> Sequence[np.ndarray]:
        outputs: Sequence[np.ndarray] = loaded.run(None, {given.name: images})
        return outputs

    return Ready(run, convolutions_in_integers(onnx.load(folder / "optimized.onnx")))


def convolutions_in_integers(optimized: Any) -> str:
    """Return how many of the convolutions work on integers, as "20 of 21"."""
    kinds = Counter(node.op_type for node in optimized.graph.node if "Conv" in node.op_type)
    integer = sum(number for kind, number in kinds.items() if kind in _INTEGER)
    return f"{integer} of {kinds.total()}"


def quantize(task: Task, quantized: Path) -> None:
    """Write the quantized network to `quantized`.

    Of a detector all behind the last layer stays in float: quantized, the decoding of its boxes
    makes onnxruntime 1.32 crash, and it makes no sense in 8 bits.
    """
    prepared = quantized.with_name("prepared.onnx")
    # The symbolic inference of shapes gives up on boxes, of which there are any number.
    preprocessing.quant_pre_process(
        str(task.model), str(prepared), skip_symbolic_shape=task.detector
    )
    model = onnx.load(prepared)
    (given,) = model.graph.input
    quantization.quantize_static(
        str(prepared),
        str(quantized),
        Calibration(given.name, task.calibration),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=behind_layers(model.graph) if task.detector else [],
    )


class Calibration:
    """Batches as `quantize_static` reads them, a `CalibrationDataReader`."""

    def __init__(self, name: str, batches: list[Images]) -> None:
        self.feeds = iter([{name: batch} for batch in batches])

    def get_next(self) -> Any:
        """Return the next batch, or None."""
        return next(self.feeds, None)


def behind_layers(graph: Any) -> list[str]:
    """Return the names of the nodes that no layer depends on, and that are none."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in _LAYERS]
    before: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in before:
            before.add(node.name)
            waiting += [makers[each] for each in node.input if each in makers]
    return [node.name for node in graph.node if node.name not in before]


if __name__ == "__main__":
    serve(prepare)
