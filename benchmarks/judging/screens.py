"""Take pictures of what users see: a report in the terminal, and its page.

    python -m benchmarks.judging.screens --out screens

It quantizes torchvision's ResNet-18, drawn weights, 4/8 bits, on drawn images, and writes the
report as text and as a picture at 80 and 120 columns, and its page at 400 and 1600 pixels, light
and dark. Needs Debian's `chromium` and `chromium-driver`, and selenium; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from unittest import mock

import torch
import torchvision

import fxquant
from benchmarks.running.browser import Browser
from fxquant.display import Shown

COLUMNS = (80, 120)
PIXELS = (400, 1600)
_TERMINAL = """<!doctype html><meta charset="utf-8"><body style="margin:0;background:#16191d">
<pre style="margin:0;padding:20px 24px;color:#dfe3e8;width:max-content;
font:14px/1.4 'DejaVu Sans Mono',monospace">{}</pre>"""


def drawn_report(size: int = 96, batches: int = 4) -> Shown:
    """Return the report of a ResNet-18, with its outputs measured."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    images = [torch.randn(4, 3, size, size) for _ in range(batches)]
    recipe = fxquant.Recipe.aciq(weight_bits=4)
    quantized = fxquant.quantize(model, images, recipe, progress=False)
    return fxquant.report(quantized, reference=model, batches=images[:1])


def text_at(result: Shown, columns: int) -> str:
    """Return what `print` shows in a terminal of that width."""
    with mock.patch.dict(os.environ, {"COLUMNS": str(columns)}):
        return str(result)


def take_pictures(result: Shown, folder: Path, browser: Browser) -> list[Path]:
    """Write all pictures of a result into a folder; return their paths."""
    taken = []
    for columns in COLUMNS:
        text = text_at(result, columns)
        (folder / f"terminal-{columns}.txt").write_text(f"{text}\n", encoding="utf-8")
        source = folder / f"terminal-{columns}.html"
        source.write_text(_TERMINAL.format(escape(text)), encoding="utf-8")
        browser.open(source, columns * 9 + 60)
        taken.append(folder / f"terminal-{columns}.png")
        browser.picture(taken[-1])
        source.unlink()
    page = result.to_html(folder / "page.html", title="ResNet-18, 4-bit weights")
    for width in PIXELS:
        for name in ("light", "dark"):
            browser.open(page, width, dark=name == "dark")
            taken.append(folder / f"page-{width}-{name}.png")
            browser.picture(taken[-1])
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, take the pictures, print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("screens"), help="a folder")
    parser.add_argument("--size", type=int, default=96, help="of the images, in pixels")
    options = parser.parse_args(arguments)
    browser = Browser()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for path in take_pictures(drawn_report(options.size), options.out, browser):
            print(path)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
