"""The sweep over geometries finds what is wrong, dies or never ends, and says of which it is."""

import sys
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.int8 import geometry_sweep
from benchmarks.int8.geometry_sweep import LAYERS, Case, draw, faults, main, watched
from fxquant.int8.arrangements import in_float
from fxquant.int8.operands import Geometry
from tests.helpers import needs_int8

CONV = Case("dense", (2, 4, 5, 6), (3, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1))
LINEAR = Case("linear", (5, 8), (6, 8), None)


def test_a_number_stands_for_one_geometry_of_any_kind() -> None:
    cases = [draw(0, number) for number in range(400)]
    assert cases == [draw(0, number) for number in range(400)]
    assert cases[:9] != [draw(1, number) for number in range(9)]
    kinds = Counter(case.kind for case in cases)
    assert kinds.keys() == {"linear", "depthwise", "multiplier", "grouped", "dense", "first"}
    assert {len(case.x) for case in cases} == {2, 3, 4, 5}
    assert len({case.rule(has_zero_point=True) for case in cases}) == 5


@needs_int8
@pytest.mark.parametrize("by", LAYERS)
@pytest.mark.parametrize("case", [CONV, LINEAR], ids=["conv", "linear"])
def test_finds_nothing_where_all_is_right(by: str, case: Case) -> None:
    assert list(faults(case, 3, LAYERS[by])) == []


@pytest.mark.parametrize("case", [CONV, LINEAR], ids=["conv", "linear"])
def test_finds_what_is_wrong_and_what_wavers(case: Case) -> None:
    calls = Counter[str]()

    def wrong(*arguments: object) -> Tensor:
        y = in_float(*arguments)  # type: ignore[arg-type]
        y[0, 0] = 150 if y.dtype is torch.uint8 else 1e3 + calls.total()
        calls["wrong"] += 1
        return y

    found = list(faults(case, 3, wrong))
    assert len(found) >= 6
    assert found[0].startswith("z=0, none to torch.float32: ")
    assert found[1] == "z=0, none to torch.float32: two calls differ"
    assert any(each.startswith("z=4, none to torch.uint8: ") for each in found)


CHILD = """
import os, sys, time
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    if number == 2: os.abort()
    if number == 4: time.sleep(60)
    print(f"{number}\\t" + "wrong" * (number == 5), flush=True)
"""


def test_what_dies_or_never_ends_is_named_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(numbers: range) -> Sequence[str]:
        return [sys.executable, "-c", CHILD, str(numbers.start), str(numbers.stop)]

    monkeypatch.setattr(geometry_sweep, "_PER_CHILD", 6)
    assert list(watched(command, range(7), 0.3)) == [
        *((0, ""), (1, ""), (2, "ended its process with -6"), (3, "")),
        *((4, "did not end in 0.3 s"), (5, "wrong"), (6, "")),
    ]


@needs_int8
@pytest.mark.slow
def test_prints_what_is_at_fault_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--geometries", "20"])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "20", "0"]
