"""Draw models, and check of each what must hold of any; print the least model that breaks it.

    python -m benchmarks.graphs.random_graphs --graphs 3000 [--seed 0] [--onnx]
    python -m benchmarks.graphs.random_graphs --only 1234

Model number n is drawn from seed n, the same on every machine: its layers and what is around them,
its inputs, its recipe (`benchmarks.graphs.drawing`). `benchmarks.graphs.invariants` says what must
hold. The table counts, for each invariant, how often it held, how often it could not, by a rule,
how often fxquant refused, and how often it broke; then come reasons and seeds. Of each invariant
that broke, the first models are shrunk and printed as Python code. The exit status is then 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.graphs.choices import Choices, Steps, shrink
from benchmarks.graphs.draft import Impossible
from benchmarks.graphs.drawing import MOST_STEPS, SETTINGS, Subject, draw
from benchmarks.graphs.invariants import Finding, Verdict, check

_VERDICTS: tuple[Verdict, ...] = ("held", "explained", "refused", "broken")
_SHOWN_SEEDS = 8


@dataclass(frozen=True)
class Found:
    """What became of one invariant of the model of one seed."""

    seed: int
    finding: Finding


def subject_of_seed(seed: int) -> tuple[Subject, Steps]:
    """Return the model that a seed stands for, and the choices that made it."""
    choices = Choices.of_seed(seed, MOST_STEPS)
    return draw(choices), choices.steps


def check_seeds(seeds: Iterable[int], *, passes: bool = True, onnx: bool = False) -> list[Found]:
    """Return what became of all invariants of all models; what breaks is printed at once."""
    found = []
    for seed in tqdm(seeds, disable=None):
        try:
            subject, _ = subject_of_seed(seed)
        except Impossible as error:
            found.append(Found(seed, Finding("drawn", "explained", str(error))))
            continue
        findings = check(subject, passes=passes, onnx=onnx)
        found += [Found(seed, each) for each in findings]
        for each in findings:
            if each.verdict == "broken":
                tqdm.write(f"seed {seed}: {each.invariant}: {each.words}", file=sys.stderr)
    return found


def least(seed: int, finding: Finding, most_tries: int = 400) -> tuple[Subject, Finding]:
    """Return the least model that breaks the invariant as that of the seed does, and how."""
    subject, steps = subject_of_seed(seed)
    best = subject, finding

    def fails(smaller: Steps) -> bool:
        nonlocal best
        try:
            subject = draw(Choices(smaller))
        except Impossible:
            return False
        is_of_pass = finding.invariant == "passes"
        for each in check(subject, passes=is_of_pass, onnx=finding.invariant == "export_onnx"):
            if each.verdict == "broken" and _kind(each) == _kind(finding):
                best = subject, each
                return True
        return False

    shrink(steps, fails, SETTINGS, most_tries)
    return best


def table(found: Sequence[Found]) -> str:
    """Return the counts of each invariant; then reasons, and the seeds that they are of."""
    counts = Counter((each.finding.invariant, each.finding.verdict) for each in found)
    invariants = dict.fromkeys(each.finding.invariant for each in found)
    rows = [[name, *(counts[name, verdict] for verdict in _VERDICTS)] for name in invariants]
    return f"{tabulate(rows, ['invariant', *_VERDICTS])}\n\n{_reasons(found)}"


def _reasons(found: Sequence[Found]) -> str:
    seeds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for each in found:
        if each.finding.verdict != "held":
            key = (each.finding.verdict, *_kind(each.finding))
            seeds[key].append(each.seed)
    rows = [
        [verdict, invariant, words[:90], len(of), " ".join(map(str, of[:_SHOWN_SEEDS]))]
        for (verdict, invariant, words), of in sorted(seeds.items(), key=lambda item: -len(item[1]))
    ]
    return tabulate(rows, ["", "invariant", "because of", "models", "seeds"], disable_numparse=True)


def _kind(finding: Finding) -> tuple[str, str]:
    """Return the invariant, and its words without what differs from model to model."""
    words = re.sub(r"'[^']*'|-?\binf\b|-?\d+(\.\d+)?", "…", finding.words)
    words = re.sub(r"…((, | and |; not lowered: )…( more)?)+", "…", words)
    return finding.invariant, words


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and what breaks; exit with an error if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--only", type=int, nargs="*", help="seeds to check in place of those")
    parser.add_argument("--onnx", action="store_true", help="write and verify ONNX files, too")
    parser.add_argument("--shrunk", type=int, default=1, help="models to shrink of a kind")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = options.only or range(options.seed, options.seed + options.graphs)
    found = check_seeds(seeds, onnx=options.onnx)
    print(table(found))
    broken: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for each in found:
        if each.finding.verdict == "broken":
            broken[_kind(each.finding)].append(each)
    for those in broken.values():
        for each in those[: options.shrunk]:
            subject, finding = least(each.seed, each.finding)
            print(f"\n# seed {each.seed}: {finding.invariant}: {finding.words}\n{subject.code}")
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
