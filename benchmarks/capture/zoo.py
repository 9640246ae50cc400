"""Quantize models that people bring, random weights, at 8/8: each through every stage.

    python -m benchmarks.capture.zoo timm:resnet18 yolo:yolov8n [--out zoo.jsonl]
    python -m benchmarks.capture.zoo --all [--match "hf:*"]
    python -m benchmarks.capture.zoo --show zoo.jsonl

`pip install -e ".[zoo]"` brings their packages; no weights are loaded. Each model runs in a process
of its own, which has so many seconds. The first batch, of two samples, is given as example and is
all that is calibrated on. The table lists

* whether the model is one graph, or in how many regions;
* multiply-adds of convolutions and linear layers, in 10⁹; the share of them in quantized layers,
  and in int8 kernels after `lower`; those of attention's products and of recurrent layers are not
  among them: their share of all is listed apart;
* dB of the first output against the float model's, beside that of min-max ranges with hooks;
* batch norms that are left, and in brackets those behind a layer that feeds nothing else;
* to how many dB batches of 1, 2 and 3 agree with the caller's model, and the lowered and the
  exported model with the simulated one; whether stored models are the same. With a question mark:
  less than 60 dB and 30 dB. Networks of random weights amplify rounding, and where the inputs' last
  bits change an output as much, or quantization itself does, that is no failure, and no proof.

What failed follows, with why.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import math
import multiprocessing
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from benchmarks.capture.zoo_models import NAMES, build
from benchmarks.capture.zoo_rows import (
    LEAST_CLOSE,
    LEAST_EQUAL,
    STAGES,
    Row,
    first_line,
    measure,
)

_PRELOADED = ("benchmarks.capture.zoo_rows", "onnxruntime", "onnxscript", "timm")
_SECONDS_TO_END = 10.0
_PASSES = ("batches", *STAGES)
_COLUMNS = (
    "model", "graph", "G multiply-adds", "quantized %", "int8 %", "products %", "recurrent %",
    "dB", "hooks dB", "norms left", *_PASSES, "seconds",
)  # fmt: skip


def run(
    name: str,
    recipe: str = "aciq",
    stages: Collection[str] | None = None,
    seconds: float = 600.0,
) -> Row:
    """Return the row of a model, from a process of its own."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([*_PRELOADED])
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=_send_row, args=(name, recipe, stages, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Row(name, failures={"process": f"no answer after {seconds:g} s"})
        row: Row = receiver.recv()
        process.join(_SECONDS_TO_END)
        return row
    except EOFError:
        process.join()
        return Row(name, failures={"process": f"ends with exit code {process.exitcode}"})
    finally:
        process.kill()
        process.join()


def _send_row(name: str, recipe: str, stages: Collection[str] | None, sender: Connection) -> None:
    try:
        logging.getLogger("fxquant").setLevel(logging.ERROR)  # the row says what was refused
        row = measure(name, build(name), recipe, stages)
    except Exception as error:
        row = Row(name, failures={"build": first_line(error)})
    sender.send(row)


def table(rows: Sequence[Row], regions: bool = False) -> str:
    """Return the rows, what failed in them, and if asked for what stayed in Python."""
    tables = [tabulate([_cells(row) for row in rows], _COLUMNS, disable_numparse=True)]
    failed = [[row.name, *failure] for row in rows for failure in row.failures.items()]
    if failed:
        tables.append(tabulate(failed, ["model", "fails", "because of"]))
    in_python = [[row.name, reason] for row in rows for reason in row.in_python]
    if in_python and regions:
        tables.append(tabulate(in_python, ["model", "in Python"]))
    return "\n\n".join(tables)


def _cells(row: Row) -> list[str]:
    shares = (row.quantized, row.int8, row.products, row.recurrent)
    return [
        row.name,
        row.graph,
        _number(row.multiply_adds, 2),
        *[_number(share, 1) for share in shares],
        _number(row.decibels, 1),
        _number(row.naive_decibels, 1),
        f"{row.norms_left} ({row.norms_behind_layers})" if row.graph else "",
        *[_outcome(row, each) for each in _PASSES],
        _number(row.seconds, 1),
    ]


def _outcome(row: Row, stage: str) -> str:
    """Return how a stage ended: where outputs were compared, to how many dB they agree.

    A question mark: less than is asked of a network that does not amplify rounding.
    """
    if not row.passed.get(stage, False):
        return "fails" if stage in row.passed else ""
    decibels = row.agreements.get(stage)
    if decibels is None:
        return "ok"
    least = LEAST_EQUAL if stage == "batches" else LEAST_CLOSE
    return f"{decibels:.0f}" + ("" if decibels >= least else " ?")


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def read_rows(lines: Iterable[str]) -> list[Row]:
    """Return the rows of a file that `--out` wrote; of a name that is there twice, the last."""
    rows = [Row(**json.loads(line)) for line in lines]
    return list({row.name: row for row in rows}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit with an error if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="as timm:resnet18")
    parser.add_argument("--all", action="store_true", help="all that benchmarks/README.md lists")
    parser.add_argument("--match", default="*", help="glob on names")
    parser.add_argument("--recipe", default="aciq", choices=["aciq", "minmax"])
    parser.add_argument("--stages", nargs="*", choices=list(STAGES), help="instead of all")
    parser.add_argument("--seconds", type=float, default=600.0, help="that each model has")
    parser.add_argument("--out", type=Path, help="file to append a JSON line a model to")
    parser.add_argument("--regions", action="store_true", help="list what stayed in Python")
    parser.add_argument("--show", type=Path, help="print the table of such a file, run nothing")
    options = parser.parse_args(arguments)
    if options.show:
        print(table(read_rows(options.show.read_text().splitlines()), options.regions))
        return
    names = fnmatch.filter([*options.names, *(NAMES if options.all else ())], options.match)
    rows = []
    for name in tqdm(names, disable=None):
        rows.append(run(name, options.recipe, options.stages, options.seconds))
        if options.out:
            with options.out.open("a") as file:
                file.write(f"{json.dumps(asdict(rows[-1]))}\n")
    print(table(rows, options.regions))
    if any(row.failures for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
