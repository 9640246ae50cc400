"""Apply the first three remedies that `fxquant.analyze` names; print what they won and promised.

    python -m benchmarks.judging.analyze_remedies --data FOLDER

The analysis sees the calibration images alone, and judges on every fourth batch of them. Then the
network is quantized by each remedy's recipe, on all of them, and judged on other images: percent of
decisions that are the float network's, and dB of the outputs.
"""

from __future__ import annotations

import torch
from tabulate import tabulate

import fxquant
from benchmarks.judging.analyzed import BATCH_SIZE, Subject, load_subject, parser
from benchmarks.running.allocator import keep_memory
from fxquant.analysis.judge import Judge

_FIRST = 3


def measure(subject: Subject) -> tuple[fxquant.Analysis, list[list[str]]]:
    """Return the analysis, and rows of what remedies promised and won."""
    found = fxquant.analyze(subject.model, subject.batches, subject.recipe, progress=False)
    judge = Judge(subject.model, list(torch.split(subject.images, BATCH_SIZE)), None, None)
    base = judge(fxquant.quantize(subject.model, subject.batches, subject.recipe, progress=False))
    rows = [["as it is", "", f"{base.points:.1f}", "", f"{base.decibels:.1f}", ""]]
    for remedy in found.remedies[:_FIRST]:
        recipe = remedy.recipe
        score = judge(fxquant.quantize(subject.model, subject.batches, recipe, progress=False))
        assert None not in (score.points, score.decibels, base.points, base.decibels)
        rows.append(
            [
                remedy.change.title,
                f"{remedy.points:+.1f}",
                f"{(score.points or 0) - (base.points or 0):+.1f}",
                f"{remedy.decibels:+.1f}",
                f"{(score.decibels or 0) - (base.decibels or 0):+.1f}",
                f"{100 * remedy.change.more_bytes / found.total_bytes:+.1f}",
            ]
        )
    return found, rows


def main() -> None:
    """Print each analysis and a table."""
    options = parser(__doc__).parse_args()
    keep_memory()
    for name in options.networks:
        found, rows = measure(load_subject(name, options))
        heads = ["remedy", "points promised", "won", "dB promised", "won", "% bytes"]
        print(f"{name}\n\n{found}\n")
        table = tabulate(rows, heads, disable_numparse=True, maxcolwidths=[60, *[None] * 5])
        print(f"{table}\n", flush=True)


if __name__ == "__main__":
    main()
