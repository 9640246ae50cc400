"""Write a float PyTorch network as ONNX, for the runtimes that read it.

    python -m benchmarks.peers.float_onnx --model MODEL.pt --inputs IMAGES.npz --batch 4 --out FILE

By `torch.export` where that can capture the network, else by tracing one call, which detectors
take: torchvision wrote theirs for it. The last line on the standard error says why neither could.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.serving import brief

_OPSET = 17


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model: Any = torch.load(options.model, weights_only=False)
    with np.load(options.inputs) as inputs:
        x = torch.from_numpy(inputs["calibration"][: options.batch])
    warnings.simplefilter("ignore")
    ways: list[dict[str, Any]] = [
        {"dynamo": True, "external_data": False},
        {"dynamo": False, "opset_version": _OPSET},
    ]
    reasons = []
    for way in ways:
        try:
            with torch.no_grad():
                torch.onnx.export(model, (x,), str(options.out), input_names=["images"], **way)
        except Exception as error:  # whatever the exporters say of this network
            reasons.append(brief(error))
        else:
            return
    sys.exit("; then ".join(reasons))


if __name__ == "__main__":
    main()
