"""Our ONNX file beside the one that onnxruntime's own `quantize_static` makes, in onnxruntime.

    python -m benchmarks.deploy.onnxruntime [NETWORK …] [--batch 4] [--threads 2] [--data FOLDER]

Both come from the same float network and the same calibration batches, and take turns in one race:
milliseconds of a batch, their ratio, dB against the float network's outputs, and how many of the
convolutions work on integers in the graph that onnxruntime makes of each file. Without `--data`
weights are random. onnxruntime is installed into an environment of its own.
"""

from __future__ import annotations

from benchmarks.deploy.duel import Duel, run
from benchmarks.int8.int8_contestants import FLOAT_ONNX, FOR_ONNXRUNTIME, Entry
from benchmarks.running.environments import ONNXRUNTIME

_RUNTIME = "benchmarks.peers.onnxruntime_int8"
DUEL = Duel(
    Entry("fxquant", _RUNTIME, "as-it-is", FOR_ONNXRUNTIME, ONNXRUNTIME),
    Entry("quantize_static", _RUNTIME, "quantize", FLOAT_ONNX, ONNXRUNTIME),
    most=1.05,
)

if __name__ == "__main__":
    run(DUEL)
