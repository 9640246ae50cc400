"""ACIQ: the clip that minimizes the expected squared error of quantizing a known distribution.

Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment",
2019; the report, II.A. A tensor is taken as Laplace(μ, b) or Gauss(μ, σ), and clipped to
[μ - α, μ + α], or to [0, α] where a ReLU follows. Four solutions are offered:

* "report": α = c(M)·b, where c(M) solves 2e^(-c) = 2c/(3·4^M): Table I. After a fused ReLU the
  range is [0, max(μ, 0) + c(M+1)·b]: Table II.
* "corrected": after a fused ReLU, the equation of the report's V.A,
  α/(3·2^(2M+2)) = b·e^(-(α-μ)/b), which does not assume μ = 0. For Laplace it has the closed form
  α = b·W(3·2^(2M+2)·e^(μ/b)) with Lambert's function W. Without a ReLU it is the same as "report".
* "weighted": the same with the rounding noise counted for the share P = P(X > 0) of the values that
  the ReLU lets through, where V.A counts one half whatever μ is: α = b·W(6·4^M·e^(μ/b)/P). For
  μ = 0 it is "corrected"; for μ < 0 it is b·c(M+1), whatever μ is. Without a ReLU it is "report".
* "optimal": the least of the whole expected error: of the quantizer of Eqs. (1)-(5) with its own
  levels, zero-point and cells, integrated over the distribution. The others approximate the
  rounding noise by α²/(3·4^M), which at 2 and 3 bits is far from what the quantizer does.

All functions are vectorized over channels: `mean` and `spread` are tensors of one shape.
"""

from __future__ import annotations

from torch import Tensor

from fxquant.numerics.closed_clips import corrected_range, report_range, weighted_range
from fxquant.numerics.optimal_clip import optimal_range
from fxquant.recipe.spec import TensorSpec


def clip_range(
    mean: Tensor, spread: Tensor, spec: TensorSpec, distribution: str, fused_relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) that `spec` asks for."""
    options = {"distribution": distribution, "fused_relu": fused_relu}
    if spec.clip == "optimal":
        return optimal_range(mean, spread, spec.bits, symmetric=spec.symmetric, **options)  # type: ignore[arg-type]
    ranges = {"report": report_range, "corrected": corrected_range, "weighted": weighted_range}
    return ranges[spec.clip](mean, spread, spec.bits, **options)  # type: ignore[arg-type]
