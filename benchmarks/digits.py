"""Train a small residual network on scikit-learn's digits, quantize it, print what that cost.

    python -m benchmarks.digits

Needs no download. The trained network is kept in benchmarks/.cache; the table and the picture go to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import fxquant
from benchmarks.judging.comparison import compare, predict, table

HERE = Path(__file__).parent
BITS = ((8, 8), (4, 8), (4, 4), (3, 8))
METHODS: dict[str, Callable[..., fxquant.Recipe]] = {
    "min-max": fxquant.Recipe.minmax,
    "ACIQ": fxquant.Recipe.aciq,
    "AdaRound": fxquant.Recipe.adaround,
}
SHOWN_NODES = 12


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network of 12 layers for 8×8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, 10) of images (N, 1, 8, 8)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, test images and labels; images (N, 1, 8, 8) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.4, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(x / 16, dtype=torch.float32) for x in split[:2])
    train_y, test_y = (torch.tensor(y) for y in split[2:])
    return train_x.view(-1, 1, 8, 8), train_y, test_x.view(-1, 1, 8, 8), test_y


def trained_model(images: Tensor, labels: Tensor, cache: Path, epochs: int = 20) -> DigitsNet:
    """Return the trained network, from the cache if it is there."""
    model = DigitsNet()
    if cache.exists():
        model.load_state_dict(torch.load(cache, weights_only=True))
        return model.eval()
    torch.manual_seed(0)
    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    batch_size = 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=epochs * -(-len(images) // batch_size)
    )
    for _ in tqdm(range(epochs), "training", disable=None):
        for batch in torch.split(torch.randperm(len(images)), batch_size):
            shift = torch.randint(-1, 2, (2,)).tolist()
            moved = torch.roll(images[batch], shift, dims=(2, 3))
            loss = F.cross_entropy(model(moved), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), cache)
    return model.eval()


def recipes() -> list[tuple[str, str, fxquant.Recipe]]:
    """Return the rows of the table: bits, method, recipe."""
    return [
        (f"{weights}/{activations}", name, make(weight_bits=weights, activation_bits=activations))
        for weights, activations in BITS
        for name, make in METHODS.items()
    ]


def draw(reports: dict[str, fxquant.Report], path: Path) -> None:
    """Save a picture of each layer's output SQNR, a line a recipe."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for number, (name, each) in enumerate(reports.items()):
        rows = [row for row in each.rows if row.weights]
        style = ("o:", "o--", "o-")[number % len(METHODS)]
        color = f"C{number // len(METHODS)}"
        names, values = [row.name for row in rows], [row.output_sqnr for row in rows]
        axes.plot(names, values, style, color=color, label=name)
    axes.set_ylabel("SQNR of the layer's output, dB")
    axes.tick_params(axis="x", rotation=60)
    axes.grid(alpha=0.3)
    figure.legend(title="bits W/A", loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, the graph before and after, and the report; save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache" / "digits.pt")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)

    train_x, train_y, test_x, test_y = load_data()
    start = time.perf_counter()
    model = trained_model(train_x, train_y, options.cache, options.epochs)
    print(f"float model ready in {time.perf_counter() - start:.1f} s\n")
    calibration = train_x[:256]
    results = compare(model, recipes(), calibration, test_x, test_y)
    print(table(results))
    (options.results / "digits.txt").write_text(table(results) + "\n")

    print(f"\nThe first {SHOWN_NODES} nodes before:\n")
    print(_first_lines(fxquant.text(fxquant.trace(model))))
    batches = torch.split(calibration, 32)
    reports = {}
    for bits, method, recipe in recipes():
        prepared = fxquant.calibrate(fxquant.prepare(model, recipe), batches, progress=False)
        quantized = fxquant.convert(prepared)
        reports[f"{bits} {method}"] = fxquant.report(quantized, reference=prepared, batches=batches)
        if (bits, method) == ("8/8", "ACIQ"):
            print(f"\nand after, {bits} bits, {method}:\n")
            print(_first_lines(fxquant.text(quantized)))
        if (bits, method) in (("8/8", "ACIQ"), ("4/8", "AdaRound")):
            print(f"\nWhat each call lost, {bits} bits, {method}:\n")
            print(reports[f"{bits} {method}"])
            assert torch.isfinite(predict(quantized, test_x)).all()
    draw(reports, options.results / "digits.png")
    print(f"\nSaved {options.results / 'digits.txt'} and {options.results / 'digits.png'}.")


def _first_lines(text: str) -> str:
    return "\n".join(text.splitlines()[:SHOWN_NODES])


if __name__ == "__main__":
    main()
