"""All that needs an NVIDIA GPU, in one command of less than eight minutes.

    python -m benchmarks.gpu

1. The tests that need a GPU.
2. ACIQ, and every way to learn roundings, on ResNet-50, random weights, on the GPU: seconds of each
   step; on the same files AIMET's AdaRound, the same bits and steps.
3. TensorRT's build of the ONNX file that `target="tensorrt"` gives: convolutions in int8, time and
   outputs beside those of the float file.

Each part has a time limit; what fails, is missing or takes longer is one line of the table, and the
exit status is 1. The peers that are not here are installed into environments of their own while the
tests run.
`--device cpu` runs part 2 on the CPU, without AIMET.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.int8.int8_contestants import least_sqnr
from benchmarks.networks.int8_networks import Network, build, images
from benchmarks.peers.torch_arrays import tensors
from benchmarks.running.limited import Parts, run_limited
from benchmarks.running.racing import Contestant, Dropped, race

_ROOT = Path(__file__).parents[1]
_AIMET = "aimet-torch==2.42.0"
_BITS = 4
_RECIPES = {
    "aciq": "ACIQ, 8/8 bits",
    "adaround": f"AdaRound, {_BITS}-bit weights",
    "gram": f"Gram matrix, {_BITS}-bit weights",
    "adaquant": f"AdaQuant, {_BITS}-bit weights",
    "blocks": f"AdaRound by blocks, {_BITS}/8 bits",
    "tensorrt": 'ACIQ, target="tensorrt"',
}
_REPEATS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parse_options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"benchmarks.gpu: PyTorch {torch.__version__} finds no NVIDIA GPU here; on the CPU "
            "there is --device cpu"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parts = Parts(folder, time.perf_counter() + 60 * options.minutes)
        write_files(parts.folder, options)
        if options.device == "cuda":
            _on_a_gpu(parts, options)
        else:
            _quantize(parts, options)
    print(_heading(options))
    rows = [[each.part, f"{each.seconds:.0f}", each.result] for each in parts.rows]
    print(tabulate(rows, ["part", "seconds", "result"], disable_numparse=True))
    if any(row.has_failed for row in parts.rows):
        sys.exit(1)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--network", default="resnet50", help="a classifier of torchvision")
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--images", type=int, default=256, help="to calibrate and learn with")
    parser.add_argument("--data", type=Path, help="tensor (N, 3, H, W), torch.save'd; else noise")
    parser.add_argument("--batch", type=int, default=32, help="of TensorRT's runs")
    parser.add_argument("--steps", type=int, default=200, help="of AdaRound, for each layer")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it")
    parser.add_argument("--folder", type=Path, help="to keep the files and the logs in")
    parser.add_argument(
        "--environments", type=Path, default=_ROOT / "benchmarks" / ".cache" / "environments"
    )
    return parser.parse_args(arguments)


def write_files(folder: Path, options: argparse.Namespace) -> None:
    """Write the network and its images, once for all who read them."""
    torch.manual_seed(0)
    wanted = Network(options.network, options.batch, options.size)
    model = build(wanted)
    if options.data:
        given = torch.load(options.data)
        test = given[-options.batch :]
    else:
        given = images(wanted, options.images, seed=1)
        test = images(wanted, options.batch, seed=2)
    torch.save(model, folder / "model.pt")
    torch.save(given[: options.images], folder / "images.pt")
    with torch.no_grad():
        torch.save(list(tensors(model(test))), folder / "expected.pt")
    np.savez(folder / "inputs.npz", calibration=given[: options.batch].numpy(), test=test.numpy())


def _on_a_gpu(parts: Parts, options: argparse.Namespace) -> None:
    """Do all parts; the environments are made while the tests run, whose time does not matter."""
    with ThreadPoolExecutor() as pool:
        aimet = pool.submit(_install, parts, options, "aimet_torch", _AIMET)
        tensorrt = pool.submit(_install, parts, options, "tensorrt", _tensorrt())
        parts.do("tests", 90, partial(_tests, parts))
    _quantize(parts, options)
    for name, file in (("float", "float.onnx"), ("fxquant", "quantized.onnx")):
        parts.do(f"TensorRT, {name}", 90, partial(_engine, parts, options, tensorrt, file))
    parts.do(f"AIMET AdaRound, {_BITS}-bit weights", 150, partial(_aimet, parts, options, aimet))


def _install(parts: Parts, options: argparse.Namespace, name: str, requirement: str) -> str:
    """Return an interpreter that has a peer's package, installed into an environment if need be."""
    if importlib.util.find_spec(name) is not None:
        return sys.executable
    command = [sys.executable, "-m", "benchmarks.running.environments"]
    command += [str(options.environments), name, requirement]
    try:
        run_limited(command, max_seconds=150, log=parts.log(f"install {name}"))
    except Dropped as reason:
        raise Dropped(f"{requirement} cannot be installed: {reason}") from None
    return str(options.environments / name / "bin" / "python")


def _tensorrt() -> str:
    """Return the package for the CUDA that PyTorch was built with."""
    return f"tensorrt-cu{str(torch.version.cuda).partition('.')[0]}>=10"


def _tests(parts: Parts, limit: float) -> str:
    """Return pytest's counts over the tests that need a GPU."""
    files = sorted(str(path) for path in (_ROOT / "tests").rglob("test_cuda*.py"))
    log = parts.log("tests")
    try:
        run_limited([sys.executable, "-m", "pytest", "-q", *files], max_seconds=limit, log=log)
    except Dropped as reason:
        raise Dropped(counts(log.read_text()) or str(reason)) from None
    return counts(log.read_text()) or "pytest says nothing"


def counts(printed: str) -> str | None:
    r"""Return the line in which pytest counts, without its ornaments.

    >>> counts("....\n===== 1 failed, 9 passed in 3.21s =====\n")
    '1 failed, 9 passed in 3.21s'
    """
    found = re.findall(r"^=*\s*(\d+ [a-z]+.* in [\d.:]+s?.*?)\s*=*$", printed, re.MULTILINE)
    return found[-1] if found else None


def _quantize(parts: Parts, options: argparse.Namespace) -> None:
    """Add the rows of fxquant's recipes."""
    for recipe, part in _RECIPES.items():
        parts.do(part, 90, partial(_recipe, parts, options, recipe))


def _recipe(parts: Parts, options: argparse.Namespace, recipe: str, limit: float) -> str:
    out = parts.folder / f"{recipe}.json"
    command = [sys.executable, "-m", "benchmarks.rounding.on_device", recipe]
    command += ["--device", options.device, "--steps", str(options.steps), "--out", str(out)]
    command += _shared(parts.folder)
    if recipe == "tensorrt":
        command += ["--onnx", str(parts.folder / "quantized.onnx")]
    run_limited(command, max_seconds=limit, log=parts.log(recipe))
    result = json.loads(out.read_text())
    said = ", ".join(f"{step} {result[step]:.2f} s" for step in ("prepare", "calibrate", "convert"))
    said += f"; {result['decibels']:.1f} dB"
    if result["peak_gb"] is not None:
        said += f"; {result['peak_gb']:.1f} GB"
    if recipe == "tensorrt":
        said += f"; {len(result['rules'])} rules broken"
    return said


def _aimet(parts: Parts, options: argparse.Namespace, python: Future[str], limit: float) -> str:
    out = parts.folder / "aimet.json"
    command = [python.result(), str(_ROOT / "benchmarks" / "peers" / "aimet_adaround.py")]
    command += ["--device", options.device, "--steps", str(options.steps), "--out", str(out)]
    command += ["--bits", str(_BITS), "--judged-images", "32", *_shared(parts.folder)]
    run_limited(command, max_seconds=limit, log=parts.log("aimet"))
    result = json.loads(out.read_text())
    return f"{result['seconds']:.1f} s; {result['decibels']:.1f} dB"


def _engine(
    parts: Parts, options: argparse.Namespace, python: Future[str], file: str, limit: float
) -> str:
    """Return what TensorRT makes of an ONNX file."""
    interpreter, model, inputs = python.result(), parts.folder / file, parts.folder / "inputs.npz"
    end = time.perf_counter() + limit
    if file == "float.onnx":
        command = [sys.executable, "-m", "benchmarks.peers.float_onnx", "--out", str(model)]
        command += ["--model", str(parts.folder / "model.pt"), "--inputs", str(inputs)]
        command += ["--batch", str(options.batch)]
        run_limited(command, max_seconds=limit, log=parts.log("float_onnx"))
    if not model.exists():
        raise Dropped(f"there is no {file}")
    outputs = parts.folder / f"{file}.npz"
    command = [interpreter, "-m", "benchmarks.peers.tensorrt_engine", "build"]
    command += ["--model", str(model), "--inputs", str(inputs), "--outputs", str(outputs)]
    command += ["--batch", str(options.batch), "--threads", "1"]
    with Contestant(
        command, threads=1, log=parts.log(file), max_seconds=end - time.perf_counter()
    ) as contestant:
        note = contestant.get_ready()
        seconds = race({file: contestant}, _REPEATS)[file]
    if isinstance(seconds, Dropped):
        raise seconds
    with np.load(outputs) as arrays:
        found = [torch.from_numpy(arrays[name]) for name in arrays.files]
    decibels = least_sqnr(torch.load(parts.folder / "expected.pt"), found, 1)
    return f"{1000 * seconds:.2f} ms for {options.batch} images; {decibels:.1f} dB; {note}"


def _shared(folder: Path) -> list[str]:
    return ["--model", str(folder / "model.pt"), "--images", str(folder / "images.pt")]


def _heading(options: argparse.Namespace) -> str:
    where: Any = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    return (
        f"{where}, PyTorch {torch.__version__}; {options.network}, {options.images} images of "
        f"{options.size}², AdaRound {options.steps} steps a layer"
    )


if __name__ == "__main__":
    main()
