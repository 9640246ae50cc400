"""Our quantized network beside that of a runtime's own quantizer, in that runtime, in one race."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from benchmarks.int8.int8_contestants import Entry
from benchmarks.int8.int8_speed import CACHE, Cell, measure
from benchmarks.networks.int8_networks import CIFAR, YOLO_BODY, Network, network

_EQUAL = 0.1  # dB: as much as other images change


@dataclass(frozen=True)
class Duel:
    """Who races, and what is asked of the first."""

    ours: Entry
    theirs: Entry
    most: float
    """Times the milliseconds of `theirs` that `ours` may take."""
    networks: tuple[str, ...] = ("resnet18", "resnet50", "mobilenet_v2", YOLO_BODY)
    """Those of a command line that names none."""
    notes: str = "integer convolutions"
    """What both say when they are ready."""


def run(duel: Duel, arguments: Sequence[str] | None = None) -> None:
    """Race on every network of the command line; print the table.

    Raises:
        SystemExit: with status 1, `ours` takes longer than is asked, or is further from float.
    """
    options = parse_options(arguments)
    rows, behind = [], []
    for name in options.networks or duel.networks:
        wanted = subject(name, options.batch, options.data)
        races = [measure(wanted, [duel.ours, duel.theirs], options) for _ in range(options.races)]
        ours, theirs = (fastest(each) for each in zip(*races, strict=True))
        rows.append([f"{name} {wanted.batch}×{wanted.size}²", *row(ours, theirs)])
        if is_behind(ours, theirs, duel.most):
            behind.append(name)
    columns = ["ms", "dB", duel.notes]
    headers = [f"{entry.name},\n{each}" for each in columns for entry in (duel.ours, duel.theirs)]
    headers.insert(2, f"ratio,\nasked ≤ {duel.most:.2f}")
    print(tabulate(rows, ["network", *headers], disable_numparse=True))
    if behind:
        raise SystemExit(f"slower or further from float than asked: {', '.join(behind)}")


def fastest(cells: Sequence[Cell]) -> Cell:
    """Return the cell with the fewest milliseconds; one without any, if there are no others.

    A process keeps the luck of its memory's layout: up to 8 % of ResNet-50's time.
    """
    return min(cells, key=lambda cell: cell.milliseconds or math.inf)


def row(ours: Cell, theirs: Cell) -> list[str]:
    """Return the milliseconds of both and their ratio, dB of both, notes of both."""
    ratio = "" if math.isnan(times := _times(ours, theirs)) else f"{times:.2f}"
    milliseconds = [
        "" if each.milliseconds is None else f"{each.milliseconds:.1f}" for each in (ours, theirs)
    ]
    decibels = ["" if each.decibels is None else f"{each.decibels:.1f}" for each in (ours, theirs)]
    return [*milliseconds, ratio, *decibels, ours.note, theirs.note]


def is_behind(ours: Cell, theirs: Cell, most: float) -> bool:
    """Say whether ours did not run, took more than `most` times as long, or has 0.1 dB less."""
    if ours.milliseconds is None or theirs.milliseconds is None:
        return ours.milliseconds is None
    return _times(ours, theirs) > most or _decibels(ours) < _decibels(theirs) - _EQUAL


def _decibels(cell: Cell) -> float:
    return math.inf if cell.decibels is None else cell.decibels


def _times(ours: Cell, theirs: Cell) -> float:
    if ours.milliseconds is None or theirs.milliseconds is None:
        return math.nan
    return ours.milliseconds / theirs.milliseconds


def subject(name: str, batch: int, data: Path | None) -> Network:
    """Return a network, with the weights and images of a folder where they are there.

    Those are `imagenet_NAME.safetensors` and `imagenet/val`; of "resnet20"
    `cifar10_resnet20.safetensors` and `cifar10.npz`.
    """
    wanted = replace(network(name, batch), batch=batch)
    if data is None:
        return wanted
    kind, photos = ("cifar10", "cifar10.npz") if name == CIFAR else ("imagenet", "imagenet/val")
    weights = data / f"{kind}_{name}.safetensors"
    if not weights.exists():
        return wanted
    return replace(wanted, weights=weights, photos=data / photos)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--races", type=int, default=3, help="with new processes; the best counts")
    parser.add_argument("--data", type=Path, help="a folder of weights and images")
    parser.add_argument("--peers", type=Path, default=CACHE / "peers", help="their environments")
    parser.add_argument("--max-seconds", type=float, default=1800.0, help="to get ready in")
    parser.set_defaults(busy=0)
    return parser.parse_args(arguments)
