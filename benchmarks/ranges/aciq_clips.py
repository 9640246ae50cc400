"""How far each of ACIQ's solutions is from the best clip there is, on its own distribution.

    python -m benchmarks.ranges.aciq_clips

For every number of bits and every μ/b from -3 to 3 the mean squared error at the solution's clip is
compared with the least of a search over 4,000 clips of the same kind, [μ - α, μ + α] or, after a
fused ReLU, [0, α]. Errors are integrals over the distribution, for the quantizer of Eqs. (1)-(5)
with its own levels and zero-point. A cell is the worst excess over all μ/b, in percent.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tabulate import tabulate

from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.closed_clips import corrected_range, report_range, weighted_range
from fxquant.numerics.optimal_clip import expected_error, optimal_range

SOLUTIONS = {
    "report": report_range,
    "corrected": corrected_range,
    "weighted": weighted_range,
    "optimal": optimal_range,
}
RATIOS = torch.linspace(-3, 3, 13, dtype=torch.float64)


def worst_excess(solution: Any, bits: int, distribution: str, fused_relu: bool) -> float:
    """Return the greatest excess of the solution's error over the least, in percent."""
    options: dict[str, Any] = {"distribution": distribution, "fused_relu": fused_relu}
    grid = Grid.of(bits, signed=False)
    low, high = solution(RATIOS, torch.ones_like(RATIOS), bits, **options)
    actual = expected_error(RATIOS, Affine.over(low, high, grid), **options)
    alphas = torch.linspace(0.02, 20, 4000, dtype=torch.float64)
    excess: list[float] = []
    for ratio, error in zip(RATIOS, actual, strict=True):
        lows = torch.zeros_like(alphas) if fused_relu else ratio - alphas
        highs = alphas if fused_relu else ratio + alphas
        affine = Affine.over(lows, highs, grid)
        least = expected_error(ratio.expand_as(alphas), affine, **options).min()
        excess.append((error / least - 1).item() * 100)
    return max(excess)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    rows = []
    for distribution in ("laplace", "gauss"):
        for fused_relu in (False, True):
            for name, solution in SOLUTIONS.items():
                if not fused_relu and name in ("corrected", "weighted"):
                    continue  # without a ReLU they are the report's
                cells = [worst_excess(solution, m, distribution, fused_relu) for m in range(2, 9)]
                kind = "[0, α]" if fused_relu else "[μ - α, μ + α]"
                rows.append([distribution, kind, name, *[f"{abs(cell):.1f}" for cell in cells]])
    columns = ["distribution", "clip", "solution", *[f"{bits} bits" for bits in range(2, 9)]]
    print(tabulate(rows, columns, disable_numparse=True))


if __name__ == "__main__":
    main()
