"""PyTorch's own quantization test models go through every stage; a share of them, here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import needs_int8

MODELS = [
    "AnnotatedConvBnReLUModel",
    "ConvBnAddReluModel(two_conv=False)",
    "NormalizationTestModel",
    "FunctionalConvReluConvModel",
    "ManualEmbeddingBagLinear",
    "TestHelperModules.Conv2dPropAnnotaton",
    "TestHelperModules.Conv2dWithTwoLinear",
    "TestHelperModules.ConvTWithBNRelu",
]


@needs_int8
def test_a_share_of_the_models_goes_through_every_stage() -> None:
    pytest.importorskip("expecttest")
    # In a process of its own: what the models are imported from parses its arguments and locks
    # torch.backends.
    command = [sys.executable, "-m", "benchmarks.capture.torch_quantization_models", "--no-onnx"]
    folder = Path(__file__).parents[2]
    run = subprocess.run([*command, "--match", *MODELS], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = run.stdout.splitlines()[2:]
    assert [row.split()[0] for row in rows[: len(MODELS)]] == MODELS
