"""Time one step of AdaRound on layers of several kinds, and the two matrix products in it.

python -m benchmarks.rounding.adaround_steps
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate

from benchmarks.running.allocator import keep_memory
from benchmarks.running.timing import interleaved_medians
from fxquant.numerics.affine import Affine, Grid
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation, Clamp, Identity
from fxquant.rounding.methods.adaround import RoundingOptimizer
from fxquant.rounding.methods.losses import Rows, cheaper_loss
from fxquant.rounding.methods.products import product_dtype
from fxquant.rounding.methods.soft_rounding import Schedule

LAYERS: dict[str, tuple[int, int, int, Activation]] = {
    "16→16 3×3, ReLU": (1, 16, 144, Clamp()),
    "16→16 3×3": (1, 16, 144, Identity()),
    "64→64 3×3, ReLU": (1, 64, 576, Clamp()),
    "64→64 3×3": (1, 64, 576, Identity()),
    "256→64 1×1, ReLU": (1, 64, 256, Clamp()),
    "512→512 3×3, ReLU": (1, 512, 4608, Clamp()),
    "512→512 3×3": (1, 512, 4608, Identity()),
    "960 depthwise 3×3, ReLU6": (960, 1, 9, Clamp(0.0, 6.0)),
}
STEPS = 20


@torch.no_grad()
def measure(
    groups: int, outputs: int, inputs: int, activation: Activation, num_rows: int, bfloat16: bool
) -> list[str]:
    """Return the kind of loss, milliseconds a step, of its gradient, and of bare products."""
    weight = 0.1 * torch.randn(groups, outputs, inputs)
    x = torch.randn(groups, 4096, inputs).relu_()
    y = torch.bmm(x, weight.mT)
    rows = Rows(x, y, activation(y))
    dtype = product_dtype(x, outputs) if bfloat16 else torch.float32
    loss = cheaper_loss(rows, activation, num_rows, 1000, dtype)
    scale = weight.abs().amax(2, keepdim=True) / 7
    schedule = Schedule(STEPS, 0.1, 0.3, 0.0, (8.0, 2.0))
    affine = Affine(scale, torch.zeros_like(scale), Grid.of(4, signed=True))
    optimizer = RoundingOptimizer(Rounding(weight, affine), loss, schedule)
    size = getattr(loss, "_size", None)
    if size is None:
        products = [(loss.difference, getattr(loss, "_gram"))]  # noqa: B009 (typed as a Loss)
    else:
        some = x[:, :size].to(dtype)
        errors = torch.randn(groups, size, outputs).to(dtype)
        products = [(some, loss.difference.mT), (errors.mT, some)]
    results = [torch.bmm(*each) for each in products]

    def multiply() -> None:
        for _ in range(STEPS):
            for (left, right), out in zip(products, results, strict=True):
                torch.bmm(left, right, out=out)

    def find_gradients() -> None:
        for step in range(STEPS):
            loss.take_turn(step)
            loss.write_gradient()

    times = interleaved_medians(
        {
            "step": optimizer.run,
            "gradient": find_gradients,
            "products": multiply,
        },
        repeats=5,
    )
    kind = f"{size} rows" if size else "moments"
    milliseconds = {name: 1000 * seconds / STEPS for name, seconds in times.items()}
    return [
        f"{kind}, {str(dtype).removeprefix('torch.')}",
        f"{milliseconds['step']:.2f}",
        f"{milliseconds['gradient']:.2f}",
        f"{milliseconds['products']:.2f}",
        f"{100 * milliseconds['products'] / milliseconds['step']:.0f} %",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--float32", action="store_true", help="no bfloat16")
    options = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    table = [
        [name, *measure(*layer, options.rows, not options.float32)]
        for name, layer in LAYERS.items()
    ]
    columns = ["layer", "loss", "step, ms", "its gradient", "products alone", "share"]
    print(tabulate(table, columns, disable_numparse=True))


if __name__ == "__main__":
    main()
