"""Compare `fxquant.analyze`'s ranking of tensors with the exhaustive one; print rank correlations.

    python -m benchmarks.judging.analyze_ranking --data FOLDER --images 256

Each weight and each activation below 8 bits is rounded alone, all others at 8 bits, and alone
raised to 8 bits, all others as the recipe says: two models a tensor, judged on images that were not
calibrated on. Rows are what may rank them: the tensor's own dB, the first-order loss at the float
network, and the share of the whole change. Columns are what they are compared with: dB of the
outputs that the tensor costs alone, dB that it wins, decisions that it wins. Cells are Spearman's
rank correlations; the last column says how many of the three that win most are among the first
three. The last row compares the decisions that tensors win with the dB: what noise leaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from tabulate import tabulate
from torch import Tensor

from benchmarks.judging.analyzed import BATCH_SIZE, Subject, load_subject, parser
from benchmarks.running.allocator import keep_memory
from fxquant.analysis.bench import Bench
from fxquant.analysis.distributions import distributions_of, own_losses
from fxquant.analysis.judge import Judge
from fxquant.analysis.ranking import TensorCost, probes_of, rank, rules_for
from fxquant.analysis.variants import with_rules
from fxquant.diagnosis import bench_for

_FIRST = 3


@dataclass(frozen=True)
class Truth:
    """What quantizing showed of one tensor."""

    alone: float
    """dB of the outputs, with it alone at few bits."""
    wins: float
    """dB, with it alone at 8 bits."""
    points: float


def truth_of(bench: Bench, judge: Judge, costs: Sequence[TensorCost]) -> list[Truth]:
    """Return what two models for each tensor show."""
    base, found = judge(bench.quantized(bench.recipe)), []

    def judged(raised: Iterable[TensorCost]) -> tuple[float, float]:
        rules = rules_for(raised, costs, bench.recipe)
        score = judge(bench.quantized(with_rules(bench.recipe, rules)))
        assert score.points is not None
        assert score.decibels is not None
        return score.points, score.decibels

    assert base.points is not None
    assert base.decibels is not None
    for cost in costs:
        points, decibels = judged([cost])
        _, alone = judged(each for each in costs if each is not cost)
        found.append(Truth(alone, decibels - base.decibels, points - base.points))
    return found


def correlations(costs: Sequence[TensorCost], truth: Sequence[Truth]) -> list[list[str]]:
    """Return the rows of the table."""
    rankings = {
        "own dB": [-(each.own or 0.0) for each in costs],
        "first order": [-(each.alone or 0.0) for each in costs],
        "share of the change": [each.wins or 0.0 for each in costs],
        "(points won)": [each.points for each in truth],
    }
    wanted = [[-each.alone for each in truth], [each.wins for each in truth]]
    wanted.append([each.points for each in truth])
    best = _first([each.wins for each in truth])
    return [
        [
            name,
            *(f"{spearmanr(scores, each).statistic:.2f}" for each in wanted),
            f"{len(best & _first(scores))} of {_FIRST}",
        ]
        for name, scores in rankings.items()
    ]


def _first(scores: Sequence[float]) -> set[int]:
    order = sorted(range(len(scores)), key=lambda each: -scores[each])
    return set(order[:_FIRST])


def measure(subject: Subject) -> tuple[int, float, list[list[str]]]:
    """Return how many tensors were ranked, in how many seconds, and the rows."""
    bench = bench_for(subject.model, subject.batches, subject.recipe)
    judged: list[Tensor] = list(torch.split(subject.images, BATCH_SIZE))
    judge = Judge(subject.model, judged, None, None)
    start = time.perf_counter()
    ranking = rank(bench, 64, own_losses(distributions_of(probes_of(bench))))
    costs = [each for each in ranking.costs if each.bits < 8]
    seconds = time.perf_counter() - start
    return len(costs), seconds, correlations(costs, truth_of(bench, judge, costs))


def main() -> None:
    """Print a table for each network."""
    options = parser(__doc__).parse_args()
    keep_memory()
    for name in options.networks:
        count, seconds, rows = measure(load_subject(name, options))
        print(f"{name}: {count} tensors, ranked in {seconds:.0f} s")
        heads = ["ranked by", "alone, dB", "8 bits, dB", "8 bits, points", "first three"]
        print(tabulate(rows, heads, disable_numparse=True), flush=True)


if __name__ == "__main__":
    main()
