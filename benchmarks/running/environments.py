"""Virtual environments of their own for the peers, which share this one's PyTorch.

    python -m benchmarks.running.environments FOLDER NAME REQUIREMENT [REQUIREMENT …]

makes one and prints its interpreter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_INSTALLED = "installed.txt"


@dataclass(frozen=True)
class Environment:
    """What a peer needs beside what is installed here."""

    name: str
    requirements: tuple[str, ...]


TORCHAO = Environment("torchao", ("torchao==0.18.0",))
ONNXRUNTIME = Environment(
    "onnxruntime", ("onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2", "sympy>=1.13")
)
EXECUTORCH = Environment("executorch", ("executorch==1.5.1",))
OPENVINO = Environment("openvino", ("openvino==2026.4.1", "nncf==3.4.0", "onnx==1.23.2"))


def interpreter(environment: Environment, folder: Path) -> Path:
    """Return the environment's Python; the environment is made under `folder` if need be.

    Its own packages come first; what it has not, it takes from the environment that this process
    runs in, so that PyTorch, several GB, is there once.

    Raises:
        SystemExit: pip cannot install what it needs.
    """
    place = folder / environment.name
    python, installed = place / "bin" / "python", place / _INSTALLED
    wanted = "\n".join(environment.requirements)
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {', '.join(environment.requirements)} into {place}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([str(python), "-c", where], text=True).strip()
    Path(packages, "host.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", *environment.requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{environment.name}: pip failed:\n{done.stderr[-2000:]}")
    installed.write_text(wanted)
    return python


def main() -> None:
    """Make the environment that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("requirements", nargs="+")
    options = parser.parse_args()
    print(interpreter(Environment(options.name, tuple(options.requirements)), options.folder))


if __name__ == "__main__":
    main()
