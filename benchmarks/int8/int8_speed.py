"""Time int8 networks in fxquant, torchao, onnxruntime and OpenVINO, in one run.

    python -m benchmarks.int8.int8_speed [--models resnet18 …] [--batch 1 4] [--busy 2]

Rows are networks, columns contestants; a cell has the milliseconds of a batch and the SQNR of the
outputs against the float network's, in dB. The milliseconds are those that two races agree on
within 5 %; a "?" says that no two of five did. With `--busy` so many other processes compute all
the while. All take the same images, from float32 NCHW to float32, with two threads; the peers live
in virtual environments of their own, which are made here. Each has a process of its own; they take
turns (`benchmarks.running.racing`).

* float, eager: batch norms folded, the faster of NCHW and channels_last;
* float, torch.compile: the same network, weights frozen;
* torchao PT2E: `benchmarks.peers.torchao_pt2e`, the faster of compiled and lowered;
* onnxruntime: the float ONNX file, quantized by `quantize_static`;
* OpenVINO, NNCF: the float ONNX file, quantized by NNCF;
* fxquant in onnxruntime, in OpenVINO: the files of `fxquant.export_onnx`, each for its target;
* fxquant: `fxquant.lower`, eager; and compiled.

`--contestants "float, *"` has the float network in the other runtimes. Weights are random but for
`--weights-dir`, a folder of `resnet18.pth`, … A cell is kept in `--results` as soon as its race is
over, and measured anew only when the network, the versions, fxquant's sources or repeats change.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.int8.int8_contestants import ANCHOR, ENTRIES, Entry, Files
from benchmarks.networks.int8_networks import NETWORKS, Network, network
from benchmarks.running.racing import Contestant, Dropped, reproduced

HERE = Path(__file__).parents[1]
CACHE = HERE / ".cache"
LOGS = CACHE / "int8_logs"
NOT_BY_DEFAULT = ("float, onnxruntime", "float, OpenVINO")
_BUSY = 0.5  # threads that run; with two busy ones the kernels of oneDNN took ten times as long
_WIDTH = 16  # characters of a column: reasons are long


@dataclass(frozen=True)
class Cell:
    """How one contestant did on one network."""

    network: dict[str, Any]
    contestant: str
    versions: dict[str, str]
    threads: int
    milliseconds: float | None = None
    """Of a batch, median; None: it did not run."""
    decibels: float | None = None
    """SQNR of the outputs against the float network's; None: infinite, or it did not run."""
    note: str = ""
    """What it chose, or why it did not run."""
    anchor: float | None = None
    """Milliseconds of the eager float network in the same race."""
    repeats: int = 0
    """How many runs the milliseconds are the median of."""
    busy: int = 0
    """How many other processes computed all the while."""
    differs: float | None = None
    """By what share of it the two best races differ, if that is more than 5 %."""

    def __str__(self) -> str:
        if self.milliseconds is None:
            return self.note
        noise = "exact" if self.decibels is None else f"{self.decibels:.1f} dB"
        doubt = "" if self.differs is None else " ?"
        return f"{self.milliseconds:.1f}{doubt}\n{noise}"


class Results:
    """Cells in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: list[Cell] = []
        if path.exists():
            self.cells = [Cell(**each) for each in json.loads(path.read_text())]

    def find(
        self, wanted: Network, entry: Entry, threads: int, repeats: int, busy: int = 0
    ) -> Cell | None:
        """Return the cell of so many repeats with what is installed now, if there is one."""
        key = _key(wanted.identity(), entry.name, entry.versions(), threads, busy)
        for cell in self.cells:
            is_enough = cell.milliseconds is None or cell.repeats >= repeats
            mine = _key(cell.network, cell.contestant, cell.versions, cell.threads, cell.busy)
            if mine == key and is_enough:
                return cell
        return None

    def add(self, cells: Iterable[Cell]) -> None:
        """Keep the cells, in the place of older ones with other versions."""
        for cell in cells:
            place = (cell.network, cell.contestant, cell.threads, cell.busy)
            self.cells = [
                each
                for each in self.cells
                if (each.network, each.contestant, each.threads, each.busy) != place
            ]
            self.cells.append(cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(each) for each in self.cells], indent=2)
        unfinished = self.path.with_name(f"{self.path.name}.new")
        unfinished.write_text(f"{text}\n")
        unfinished.replace(self.path)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def measure(wanted: Network, entries: Sequence[Entry], options: argparse.Namespace) -> list[Cell]:
    """Let the contestants race on one network; return their cells."""
    say(f"{wanted.name}, batch {wanted.batch}, {wanted.size} pixels: {len(entries)} contestants")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        log = LOGS / f"{wanted.name}, files.txt"
        files = Files(wanted, Path(folder), options.peers, options.threads, log)
        ready: dict[str, Contestant] = {}
        notes: dict[str, str] = {}
        for entry in entries:
            start = time.perf_counter()
            log = LOGS / f"{wanted.name}, {entry.name}.txt"
            try:
                contestant = stack.enter_context(files.start(entry, log, options.max_seconds))
                notes[entry.name] = contestant.get_ready()
                ready[entry.name] = contestant
            except Dropped as reason:
                notes[entry.name] = str(reason)
            outcome = "ready" if entry.name in ready else "out"
            seconds = time.perf_counter() - start
            say(f"{entry.name}: {outcome} after {seconds:.0f} s {notes[entry.name]}")
        for _ in range(options.busy):
            stack.enter_context(_busy_process())
        times, doubts = reproduced(ready, options.repeats)
        return [
            _cell(wanted, entry, options, (times, doubts), notes[entry.name], files)
            for entry in entries
        ]


@contextmanager
def _busy_process() -> Iterator[None]:
    """Let another process compute, on one thread, until the context ends."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _cell(
    wanted: Network,
    entry: Entry,
    options: argparse.Namespace,
    measured: tuple[dict[str, float | Dropped], dict[str, float]],
    note: str,
    files: Files,
) -> Cell:
    times, doubts = measured
    place = (wanted.identity(), entry.name, entry.versions(), options.threads)
    busy, differs = options.busy, doubts.get(entry.name)
    seconds, anchor = times.get(entry.name), times.get(ANCHOR.name)
    anchor = anchor * 1000 if isinstance(anchor, float) else None
    if not isinstance(seconds, float):
        return Cell(*place, note=str(seconds) if seconds else note, anchor=anchor, busy=busy)
    noise = files.agreement(entry)
    decibels = None if noise == float("inf") else noise
    milliseconds, repeats = seconds * 1000, options.repeats
    return Cell(*place, milliseconds, decibels, note, anchor, repeats, busy, differs)


def table(
    networks: Sequence[Network], entries: Sequence[Entry], find: Callable[..., Cell | None]
) -> str:
    """Return the table, and what is to be known of cells that were not measured together."""
    rows, remarks = [], []
    for each in networks:
        cells = [find(each, entry) for entry in entries]
        rows.append([f"{each.name} {each.batch}×{each.size}²", *[str(c or "") for c in cells]])
        anchors = sorted({cell.anchor for cell in cells if cell and cell.anchor is not None})
        if len(anchors) > 1:
            remarks.append(
                f"{each.name}: several races; {ANCHOR.name} took {anchors[0]:.1f} to "
                f"{anchors[-1]:.1f} ms in them"
            )
    headers = ["network", *[entry.name for entry in entries]]
    wrapped = tabulate(
        rows, headers, disable_numparse=True, maxcolwidths=_WIDTH, maxheadercolwidths=_WIDTH
    )
    return "\n".join([wrapped, *remarks])


def say(words: str) -> None:
    """Tell of the progress."""
    print(words, file=sys.stderr, flush=True)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--contestants", nargs="+", default=[], metavar="GLOB", help="of names")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 4], help="of classifiers; of others it is 1"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute")
    parser.add_argument("--weights-dir", type=Path, help="of NAME.safetensors or NAME.pth")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "int8_speed.json")
    parser.add_argument("--again", action="store_true", help="measure what is in --results too")
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    parser.add_argument("--peers", type=Path, default=CACHE / "peers", help="their environments")
    parser.add_argument("--max-seconds", type=float, default=1800.0, help="to get ready in")
    return parser.parse_args(arguments)


def chosen(globs: Sequence[str]) -> list[Entry]:
    """Return the contestants whose names match, or the default ones.

    Raises:
        SystemExit: a glob matches none.
    """
    names = [entry.name for entry in ENTRIES]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise SystemExit(f"--contestants {glob!r} matches none of: {'; '.join(names)}")
    if not globs:
        return [entry for entry in ENTRIES if entry.name not in NOT_BY_DEFAULT]
    return [each for each in ENTRIES if any(fnmatch.fnmatch(each.name, glob) for glob in globs)]


def main() -> None:
    """Measure what is missing; print the table."""
    options = parse_options()
    load = os.getloadavg()[0]
    if load > _BUSY:
        say(f"others are at work (load {load:.1f}): OpenMP's threads wait for each other then")
    entries, results = chosen(options.contestants), Results(options.results)
    wanted = [
        network(name, batch, options.weights_dir)
        for name in options.models
        for batch in options.batch
    ]
    networks = list(dict.fromkeys(wanted))  # those that take one image have one row

    def find(wanted: Network, entry: Entry) -> Cell | None:
        return results.find(wanted, entry, options.threads, options.repeats, options.busy)

    for each in networks:
        found = [entry for entry in entries if find(each, entry) and not options.again]
        missing = [entry for entry in entries if entry not in found]
        if missing:
            runners = missing if ANCHOR in missing else [ANCHOR, *missing]
            cells = measure(each, runners, options)
            known = {entry.name for entry in found}
            results.add(cell for cell in cells if cell.contestant not in known)
    if options.json:
        cells = [cell for each in networks for entry in entries if (cell := find(each, entry))]
        print(json.dumps([asdict(cell) for cell in cells], indent=2))
    else:
        print(table(networks, entries, find))


if __name__ == "__main__":
    main()
