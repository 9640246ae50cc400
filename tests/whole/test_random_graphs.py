"""A hundred models drawn at random: what must hold of any model holds of each."""

import pytest

from benchmarks.graphs.invariants import check
from benchmarks.graphs.random_graphs import least, subject_of_seed

IN_A_TEST = 10


@pytest.mark.parametrize("first", range(0, 100, IN_A_TEST))
def test_what_must_hold_of_any_model_holds_of_those_drawn(first: int) -> None:
    prepared = 0
    for seed in range(first, first + IN_A_TEST):
        findings = check(subject_of_seed(seed)[0], passes=seed % 10 == 0)
        for finding in findings:
            if finding.verdict == "broken":
                subject, finding = least(seed, finding, most_tries=60)
                pytest.fail(f"seed {seed}: {finding.invariant}: {finding.words}\n{subject.code}")
        prepared += any(each.invariant == "prepare" and each.verdict == "held" for each in findings)
    assert prepared > IN_A_TEST // 2
