"""Our ONNX file beside the network that NNCF quantizes, in OpenVINO.

    python -m benchmarks.deploy.openvino [NETWORK …] [--batch 4] [--threads 2] [--data FOLDER]

Both come from the same float network and the same calibration batches, and take turns in one race:
milliseconds of a batch, their ratio, dB against the float network's outputs, and how many of the
convolutions work on integers in the graph that OpenVINO's CPU plugin runs. Without `--data` weights
are random. OpenVINO and NNCF are installed into an environment of their own.
"""

from __future__ import annotations

from benchmarks.deploy.duel import Duel, run
from benchmarks.int8.int8_contestants import FLOAT_ONNX, FOR_OPENVINO, Entry
from benchmarks.running.environments import OPENVINO

_RUNTIME = "benchmarks.peers.openvino_int8"
DUEL = Duel(
    Entry("fxquant", _RUNTIME, "as-it-is", FOR_OPENVINO, OPENVINO),
    Entry("NNCF", _RUNTIME, "nncf", FLOAT_ONNX, OPENVINO),
    most=1.02,
)

if __name__ == "__main__":
    run(DUEL)
