"""The report's figures 1 and 2: the clip of its V.A exactly, by its polynomial, by brute force.

    python -m benchmarks.ranges.aciq_figures

For 4 and 8 bits and μ/b from -3 to 3, the clip [0, α] of Laplace(μ, b) before a fused ReLU:

* exact: the solution of the report's equation α/(3·2^(2M+2)) = b·e^(-(α-μ)/b), which
  `fxquant.numerics.aciq` calls "corrected": α/b = W(3·2^(2M+2)·e^(μ/b)).
* polynomial: the report's G = c_F(M) - g(μ/b), g being `tiao` or `tiao2` at d = μ/b.
* brute force: the clip of the least expected error of the quantizer itself, of 2,000. V.A counts
  the rounding noise of one half of the values, whatever μ is: right at μ = 0, too many below, too
  few above (`fxquant.numerics.aciq`'s "weighted" counts them).

The table's last columns say how much more the exact clip and the polynomial lose than the best.

The report's signs are right: with c_F + g or g(-μ/b) the residual of its figure 2 is 13 times as
large or more. But its two functions are swapped: the one marked "4bit" is for 8 bits, and the other
way round; --printed draws them as they are marked. As marked, G misses the exact clip by up to
0.24·b; swapped, by up to 0.012·b.

The picture, benchmarks/results/aciq_figures.png, shows α/b, and the residual of the equation,
3·2^(2M+2)·e^(-α/b+μ/b) - α/b: the report's figure 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from tabulate import tabulate
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.closed_clips import corrected_range, laplace_constant
from fxquant.numerics.optimal_clip import expected_error

HERE = Path(__file__).parents[1]
BITS = (4, 8)
_CLIPS = 2000


def tiao(d: Tensor) -> Tensor:
    """Return the report's g(d) marked "4bit"."""
    return -0.92 * (0.996 * d + 0.011 * d.abs() ** 0.65 + 0.001 * d**2 - 0.0045)


def tiao2(d: Tensor) -> Tensor:
    """Return the report's g(d) marked "8bit"."""
    return -0.89 * (0.963 * d + 0.019 * d.abs() ** 1.3 + 0.001 * d**2 - 0.008)


def polynomial_clip(ratio: Tensor, bits: int, *, as_printed: bool = False) -> Tensor:
    """Return the report's G(c_F(M), μ/b) for 4 or 8 bits.

    Args:
        ratio: μ/b, of any shape.
        bits: M.
        as_printed: take the function that the report marks with M bits, not the one that fits.
    """
    g = tiao if (bits == 4) == as_printed else tiao2
    return laplace_constant(bits + 1) - g(ratio)


def exact_clip(ratio: Tensor, bits: int) -> Tensor:
    """Return the solution α/b of V.A's equation."""
    one = torch.ones_like(ratio)
    _, alpha = corrected_range(ratio, one, bits, distribution="laplace", fused_relu=True)
    return alpha


def best_clip(ratio: Tensor, bits: int) -> Tensor:
    """Return the α/b of least expected error, by trying: (n,) -> (n,)."""
    widest = laplace_constant(bits + 1) + 4
    alphas = torch.linspace(0.5, widest, _CLIPS, dtype=torch.float64)
    best = [alphas[clip_error(each.expand_as(alphas), alphas, bits).argmin()] for each in ratio]
    return torch.stack(best)


def clip_error(ratio: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Return the expected squared error, in b², of the quantizer over [0, α]."""
    affine = Affine.over(torch.zeros_like(alpha), alpha, Grid.of(bits, signed=False))
    return expected_error(ratio, affine, "laplace", fused_relu=True)


def residual(alpha: Tensor, ratio: Tensor, bits: int) -> Tensor:
    """Return 3·2^(2M+2)·e^(-α+μ/b) - α: the report's "bias", 0 where α solves its equation."""
    return 3 * 4.0 ** (bits + 1) * torch.exp(ratio - alpha) - alpha


def rows(bits: int, *, as_printed: bool = False) -> list[list[object]]:
    """Return the table's rows for one number of bits."""
    ratio = torch.linspace(-3, 3, 7, dtype=torch.float64)
    exact, best = exact_clip(ratio, bits), best_clip(ratio, bits)
    polynomial = polynomial_clip(ratio, bits, as_printed=as_printed)
    least = clip_error(ratio, best, bits)
    columns = [exact, polynomial, best, residual(exact, ratio, bits).abs()]
    columns += [residual(polynomial, ratio, bits)]
    columns += [(clip_error(ratio, each, bits) / least - 1) * 100 for each in (exact, polynomial)]
    forms = ("{:.3f}", "{:.3f}", "{:.2f}", "{:.0e}", "{:.3f}", "{:.2f}", "{:.2f}")
    cells = [
        [form.format(value) for value in column]
        for form, column in zip(forms, columns, strict=True)
    ]
    return [
        [bits, f"{each:.0f}", *row]
        for each, row in zip(ratio.tolist(), zip(*cells, strict=True), strict=True)
    ]


def draw(path: Path, *, as_printed: bool = False) -> None:
    """Save the picture."""
    ratio = torch.linspace(-3, 3, 61, dtype=torch.float64)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for (top, bottom), bits in zip(axes.T, BITS, strict=True):
        exact = exact_clip(ratio, bits)
        polynomial = polynomial_clip(ratio, bits, as_printed=as_printed)
        top.plot(ratio, exact, label="exact")
        top.plot(ratio, polynomial, "--", label="the report's polynomial")
        top.plot(ratio[::2], best_clip(ratio[::2], bits), ".", label="brute force")
        top.set_title(f"{bits} bits")
        bottom.plot(ratio, residual(exact, ratio, bits), label="exact")
        bottom.plot(ratio, residual(polynomial, ratio, bits), "--", label="the report's polynomial")
        bottom.set_xlabel("μ/b")
        for each in (top, bottom):
            each.grid(alpha=0.3)
            each.legend()
    axes[0, 0].set_ylabel("α/b")
    axes[1, 0].set_ylabel("residual of V.A's equation")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--printed", action="store_true", help="g as marked in the report")
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    columns = ["bits", "μ/b", "exact α/b", "polynomial", "brute force", "|residual|, exact"]
    columns += ["residual, polynomial", "exact loses %", "polynomial loses %"]
    table = [row for bits in BITS for row in rows(bits, as_printed=options.printed)]
    print(tabulate(table, columns, disable_numparse=True))
    path = options.results / ("aciq_figures_printed.png" if options.printed else "aciq_figures.png")
    draw(path, as_printed=options.printed)
    print(f"\nSaved {path}.")


if __name__ == "__main__":
    main()
