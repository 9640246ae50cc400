"""Who runs a network in int8, and the files that they read."""

from __future__ import annotations

import functools
import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxquant
import fxquant.passes
from benchmarks.networks.int8_networks import CALIBRATION_IMAGES, Network, build, images
from benchmarks.peers.serving import brief
from benchmarks.peers.torch_arrays import tensors
from benchmarks.running.environments import ONNXRUNTIME, OPENVINO, TORCHAO, Environment, interpreter
from benchmarks.running.quiet import stderr_to
from benchmarks.running.racing import Contestant, Dropped
from fxquant.numerics.decibels import sqnr

FLOAT, FLOAT_ONNX = "float.pt", "float.onnx"
QUANTIZED, FOR_ONNXRUNTIME, FOR_OPENVINO = "quantized.pt", "onnxruntime.onnx", "openvino.onnx"
FOR_EXECUTORCH = "executorch.pt2"
_INPUTS = "inputs.npz"
_PHOTO_BATCHES = 8  # four photos said 28 to 31 dB of what is 32 dB on 32 of them
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Entry:
    """A contestant: a module that speaks `benchmarks.peers.serving`, and what it is given."""

    name: str
    module: str
    variant: str
    model: str
    """The file that it reads."""
    environment: Environment | None = None
    """None: this process's."""

    def versions(self) -> dict[str, str]:
        """Return what its figures depend on."""
        found = {"torch": str(torch.__version__)}
        if self.environment is not None:
            found |= {self.environment.name: " ".join(self.environment.requirements)}
        if self.model not in (FLOAT, FLOAT_ONNX):
            found["fxquant"] = digest_of_sources()
        return found


_OWN = "benchmarks.int8.int8_own"
_RUNTIME, _VINO = "benchmarks.peers.onnxruntime_int8", "benchmarks.peers.openvino_int8"
ANCHOR = Entry("float, eager", _OWN, "eager", FLOAT)
"""Runs along in every race, so that cells of several races can be held against each other."""
ENTRIES = (
    ANCHOR,
    Entry("float, torch.compile", _OWN, "compiled", FLOAT),
    Entry("float, onnxruntime", _RUNTIME, "as-it-is", FLOAT_ONNX, ONNXRUNTIME),
    Entry("float, OpenVINO", _VINO, "as-it-is", FLOAT_ONNX, OPENVINO),
    Entry("torchao PT2E", "benchmarks.peers.torchao_pt2e", "pt2e", FLOAT, TORCHAO),
    Entry("onnxruntime", _RUNTIME, "quantize", FLOAT_ONNX, ONNXRUNTIME),
    Entry("OpenVINO, NNCF", _VINO, "nncf", FLOAT_ONNX, OPENVINO),
    Entry("fxquant in onnxruntime", _RUNTIME, "as-it-is", FOR_ONNXRUNTIME, ONNXRUNTIME),
    Entry("fxquant in OpenVINO", _VINO, "as-it-is", FOR_OPENVINO, OPENVINO),
    Entry("fxquant", _OWN, "lowered", QUANTIZED),
    Entry("fxquant, torch.compile", _OWN, "lowered, compiled", QUANTIZED),
)


class Files:
    """What the contestants read, in one folder, each file made when it is asked for.

    Args:
        network: which they run.
        folder: empty.
        environments: the folder of the peers' environments.
        threads: of the contestants.
        log: a file for what is printed on the way.
    """

    def __init__(
        self, network: Network, folder: Path, environments: Path, threads: int, log: Path
    ) -> None:
        self.network, self.folder, self.threads = network, folder, threads
        self.environments, self.log = environments, log
        self.model = build(network)
        self.calibration = images(network, CALIBRATION_IMAGES, seed=1)
        batches = 1 if network.photos is None else _PHOTO_BATCHES
        self.test = images(network, batches * network.batch, seed=2)
        arrays = {"calibration": self.calibration.numpy(), "test": self.test.numpy()}
        np.savez(folder / _INPUTS, **arrays)  # type: ignore[arg-type]
        with torch.no_grad():
            self.expected = list(tensors(self.model(self.test)))
        self._makers: dict[str, Callable[[Path], None]] = {
            FLOAT: lambda path: torch.save(self.model, path),
            QUANTIZED: lambda path: torch.save(self._quantize("x86"), path),
            FLOAT_ONNX: self._export_float,
            FOR_ONNXRUNTIME: lambda path: self._export_quantized("onnxruntime", path),
            FOR_OPENVINO: lambda path: self._export_quantized("openvino", path),
            FOR_EXECUTORCH: self._export_program,
        }
        self._missing: dict[str, Dropped] = {}

    def get(self, name: str) -> Path:
        """Return the path of a file that is there.

        Raises:
            Dropped: it cannot be made.
        """
        path = self.folder / name
        if name in self._missing:
            raise self._missing[name]
        if not path.exists():
            try:
                with stderr_to(self.log):  # torch.export prints the graphs that it cannot take
                    self._makers[name](path)
            except Dropped as reason:
                self._missing[name] = reason
                raise
            except Exception as error:  # of one cell: the others go on
                self._missing[name] = Dropped(f"fails: {brief(error)}")
                raise self._missing[name] from error
        return path

    def start(self, entry: Entry, log: Path, max_seconds: float) -> Contestant:
        """Return the contestant's process, which gets ready.

        Raises:
            Dropped: a file that it needs cannot be made.
        """
        command = [self._python(entry.environment), "-m", entry.module, entry.variant]
        command += ["--model", str(self.get(entry.model)), "--inputs", str(self.folder / _INPUTS)]
        command += ["--outputs", str(self._outputs(entry)), "--batch", str(self.network.batch)]
        command += ["--threads", str(self.threads)]
        if self.network.kind == "detector":
            command.append("--detector")
        return Contestant(command, threads=self.threads, log=log, max_seconds=max_seconds)

    def agreement(self, entry: Entry) -> float:
        """Return the SQNR in dB of a contestant's outputs against the float network's.

        Of a detector, which has two of them, the lower one.
        """
        with np.load(self._outputs(entry)) as arrays:
            actual = [torch.from_numpy(arrays[name]) for name in arrays.files]
        return least_sqnr(self.expected, actual, self.network.num_compared)

    def _outputs(self, entry: Entry) -> Path:
        return self.folder / f"outputs of {entry.name}.npz"

    def _python(self, environment: Environment | None) -> str:
        if environment is None:
            return sys.executable
        return str(interpreter(environment, self.environments))

    def _quantize(self, target: str) -> nn.Module:
        batches = torch.split(self.calibration, self.network.batch)
        recipe = fxquant.Recipe.aciq(target=target)
        return fxquant.quantize(self.model, batches, recipe, progress=False)

    def _export_program(self, path: Path) -> None:
        standard = fxquant.to_qdq(self._quantize("executorch"))
        torch.export.save(torch.export.export(standard, (self.test,)), path)

    def _export_quantized(self, target: str, path: Path) -> None:
        try:
            fxquant.export_onnx(
                self._quantize(target),
                path,
                self.test[: self.network.batch],
                dynamic_batch=False,  # as in the float file that the runtimes' quantizers take
            )
        except fxquant.LoweringError as error:
            raise Dropped(f"cannot export: {brief(error)}") from error

    def _export_float(self, path: Path) -> None:
        command = [self._python(ONNXRUNTIME), "-m", "benchmarks.peers.float_onnx"]
        command += ["--model", str(self.get(FLOAT)), "--inputs", str(self.folder / _INPUTS)]
        command += ["--batch", str(self.network.batch), "--out", str(path)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise Dropped(f"cannot capture: {words[-1]}")


def least_sqnr(expected: Iterable[Tensor], actual: Iterable[Tensor], count: int) -> float:
    """Return the lowest SQNR in dB of the first `count` outputs."""
    pairs = list(zip(expected, actual, strict=True))[:count]
    return min(sqnr(wanted, found) for wanted, found in pairs)


@functools.cache
def digest_of_sources() -> str:
    """Return what tells one state of fxquant's sources from another."""
    return hashlib.sha256(b"".join(each.read_bytes() for each in sources())).hexdigest()[:12]


def sources() -> list[Path]:
    """Return the files of fxquant, passes among them."""
    folders = [Path(inspect.getfile(each)).parent for each in (fxquant, fxquant.passes)]
    return sorted(file for folder in folders for file in folder.rglob("*.py"))
