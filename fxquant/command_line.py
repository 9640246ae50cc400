"""What can be asked of files from a shell: `python -m fxquant report model.fxq`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fxquant.display.shown import Shown
from fxquant.errors import FxquantError
from fxquant.graph.printing import text
from fxquant.reporting.changes import changes
from fxquant.reporting.model_card import card
from fxquant.reporting.node_by_node import compare
from fxquant.reporting.table import report
from fxquant.storage.files import load

_SAMPLES_ARE_DRAWN = "inputs drawn from a normal distribution, seed 0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 behind an error, which is printed.

    Args:
        arguments: None: those of the process.
    """
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # behind `| head`: what Python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (FxquantError, OSError) as error:
        print(f"python -m fxquant {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fxquant",
        description="Reads models that fxquant.save wrote; runs no code of theirs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("file", type=Path, help="a model that fxquant.save wrote")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--html", type=Path, metavar="OUT", help="write a page instead")
    out.add_argument("--csv", type=Path, metavar="OUT", help="write the main table instead")
    out.add_argument("--json", type=Path, metavar="OUT", help="write all of it instead")

    command = commands.add_parser(
        "report", parents=[one, out], help="how each call is quantized, and what that loses"
    )
    command.add_argument("--worst", type=int, metavar="N", help="only the N weakest calls")
    command.add_argument("--select", metavar="GLOB", help='only calls of these names: "layer4.*"')
    command.set_defaults(run=_report)

    command = commands.add_parser("text", parents=[one], help="the graph, one line a node")
    command.set_defaults(run=lambda given: print(text(load(given.file))))

    command = commands.add_parser("card", parents=[one], help="a model card in Markdown")
    command.add_argument("--out", type=Path, help="the file to write; else it is printed")
    command.add_argument("--title")
    command.add_argument("--data", help="what it was calibrated on, in a sentence")
    command.add_argument("--license", help='as hubs name it: "apache-2.0"')
    command.set_defaults(run=_card)

    command = commands.add_parser(
        "compare", parents=[out], help="what two models quantize in different ways"
    )
    command.add_argument("first", type=Path)
    command.add_argument("second", type=Path)
    command.add_argument(
        "--shape",
        type=_shape,
        help=f"also run both, node by node, on {_SAMPLES_ARE_DRAWN}: 8,3,224,224",
    )
    command.add_argument(
        "--inputs", type=Path, help="or on a tensor in a file: .npy, .pt, .safetensors"
    )
    command.set_defaults(run=_compare)
    return parser


def _report(given: argparse.Namespace) -> None:
    shown = report(load(given.file))
    if given.select:
        shown = shown.select(given.select)
    if given.worst:
        shown = shown.worst(given.worst)
    _put(shown, given)


def _card(given: argparse.Namespace) -> None:
    options = {"title": given.title, "data": given.data, "license": given.license}
    made = card(load(given.file), **options)
    if given.out is None:
        print(made, end="")
    else:
        made.save(given.out)


def _compare(given: argparse.Namespace) -> None:
    first, second = load(given.first), load(given.second)
    batch = _batch(given)
    if batch is None:
        _put(changes(first, second), given)
        return
    _put(compare(first, second, [batch]), given)


def _batch(given: argparse.Namespace) -> Tensor | None:
    if given.inputs is not None:
        return _read(given.inputs)
    if given.shape is None:
        return None
    return torch.randn(given.shape, generator=torch.Generator().manual_seed(0))


def _read(path: Path) -> Tensor:
    """Return the tensor of a file."""
    try:
        found = _READERS.get(path.suffix, _read_torch)(path)
    except OSError:
        raise
    except Exception as error:  # each reader has errors of its own for a file that is none of its
        raise FxquantError(f"{path}: it cannot be read as a tensor: {error}") from error
    if not isinstance(found, Tensor):
        raise FxquantError(f"{path}: it holds a {type(found).__name__}: give a file of one tensor")
    return found


def _read_numpy(path: Path) -> object:
    import numpy

    return torch.from_numpy(numpy.load(path, allow_pickle=False))


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    tensors = list(load_file(path).values())
    return tensors[0] if len(tensors) == 1 else tensors


def _read_torch(path: Path) -> object:
    return torch.load(path, weights_only=True)


_READERS = {".npy": _read_numpy, ".safetensors": _read_safetensors}


def _shape(given: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in given.replace("x", ",").split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given!r}: give sizes: 8,3,224,224") from error


def _put(shown: Shown, given: argparse.Namespace) -> None:
    """Write what is shown to the files that are asked for, or print it."""
    ways = (
        (given.html, shown.to_html),
        (given.csv, shown.to_csv),
        (given.json, shown.to_json),
    )
    for path, write in ways:
        if path is not None:
            write(path)
            print(f"wrote {path}")
    if not any(path for path, _ in ways):
        print(shown)
