"""Our program beside the one that XNNPACKQuantizer makes, in ExecuTorch's own runtime.

    python -m benchmarks.deploy.executorch [NETWORK …] [--batch 4] [--threads 2] [--data FOLDER]

Both come from the same float network and the same calibration batches, are lowered by
`to_edge_transform_and_lower` with XNNPACK's partitioner, and take turns in one race: milliseconds
of a batch, their ratio, dB against the float network's outputs; how many of the convolutions and
linear layers are delegated in integers, and by how many steps of its scale a quantized tensor
differs most from what PyTorch computes of the same inputs. Without `--data` weights are random.
ExecuTorch is installed into an environment of its own.
"""

from __future__ import annotations

from benchmarks.deploy.duel import Duel, run
from benchmarks.int8.int8_contestants import FLOAT, FOR_EXECUTORCH, Entry
from benchmarks.networks.int8_networks import LINEAR_LAYERS
from benchmarks.running.environments import EXECUTORCH

_RUNTIME = "benchmarks.peers.executorch_pte"
DUEL = Duel(
    Entry("fxquant", _RUNTIME, "exported", FOR_EXECUTORCH, EXECUTORCH),
    Entry("XNNPACKQuantizer", _RUNTIME, "pt2e", FLOAT, EXECUTORCH),
    most=1.05,
    networks=("resnet18", "mobilenet_v2", LINEAR_LAYERS),
    notes="integer layers, most steps",
)

if __name__ == "__main__":
    run(DUEL)
