"""A model card: what someone who gets a quantized model wants to know of it, in Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from torch import fx, nn

from fxquant.capture.naming import find_regions
from fxquant.display.files import written
from fxquant.display.table import Column, Table
from fxquant.errors import PassError
from fxquant.graph.journal import read_recipe
from fxquant.modules.own import own_modules
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import TensorSpec
from fxquant.reporting.table import Report, report

_TAGS = ("fxquant", "quantization", "post-training-quantization")
_FORMS = {
    "prepared": "prepared for calibration: in floating point",
    "converted": "a simulation: integer weights, activations rounded to their grids",
    "lowered": "on int8 kernels (x86 with VNNI)",
}


class Card(str):
    """A model card in Markdown, which a notebook shows as it is meant."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as "README.md"."""
        written(self, path)


def card(
    model: nn.Module,
    *,
    title: str | None = None,
    data: str | None = None,
    results: Mapping[str, float | str] | None = None,
    license: str | None = None,
) -> Card:
    """Return a model card in Markdown: the recipe, sizes, coverage, and what each call lost.

    Model hubs read the block at its head.

    Args:
        model: what `convert` or `lower` made, or `load` read.
        title: None: the bits.
        data: what it was calibrated on, in a sentence.
        results: figures by name, as you measured them: {"top-1": 71.2}.
        license: for the head, as hubs name it: "apache-2.0".

    Raises:
        PassError: `model` is none of fxquant's.

    >>> from fxquant.api import quantize
    >>> import torch
    >>> quantized = quantize(nn.Sequential(nn.Linear(8, 4)), [torch.randn(16, 8)])
    >>> print(card(quantized, title="Tiny", results={"top-1": 71.2}).splitlines()[5])
    # Tiny
    """
    recipe = read_recipe(model) if find_regions(model) else None
    if recipe is None:
        raise PassError(f"card: got a {type(model).__name__}: give what convert or lower made")
    reported = report(model)
    found = {module.stage for _, module in own_modules(model)}
    form = next(_FORMS[stage] for stage in ("lowered", "converted", "prepared") if stage in found)
    head = {"library_name": "fxquant", "tags": list(_TAGS)} | (
        {"license": license} if license else {}
    )
    parts = [
        "---\n" + "\n".join(_yaml(head)) + "\n---",
        f"# {title or f'Quantized model, {_bits(recipe)}'}",
        f"A PyTorch model, quantized after training by fxquant; {form}.",
        _listed(reported.heads()),
        '## Use\n\n```python\nimport fxquant\n\nmodel = fxquant.load("model.fxq")\n'
        f"y = model({', '.join(_inputs(model))})\n```",
        f"## Recipe\n\n```python\n{recipe!r}\n```\n\n{_sides(recipe)}",
        f"## Calibration data\n\n{data}" if data else "",
        f"## Results\n\n{_results(results).markdown()}" if results else "",
        f"## What each call lost\n\n{_tables(reported)}",
    ]
    return Card("\n\n".join(part for part in parts if part) + "\n")


def _yaml(head: Mapping[str, object]) -> list[str]:
    """Return lines of YAML, of which JSON is a part."""
    return [f"{key}: {json.dumps(value)}" for key, value in head.items()]


def _listed(sentences: list[str]) -> str:
    return "\n".join(f"* {each}" for each in sentences)


def _bits(recipe: Recipe) -> str:
    sides = ("weights", recipe.weights), ("activations", recipe.activations)
    return ", ".join(f"{name} {spec.bits} bits" for name, spec in sides if spec is not None)


def _sides(recipe: Recipe) -> str:
    def said(spec: TensorSpec | None) -> str:
        if spec is None:
            return "in float"
        return f"{spec}, one scale {'a channel' if spec.per_channel else 'a tensor'}"

    kept = f"\n* for: {recipe.target}"
    return f"* weights: {said(recipe.weights)}\n* activations: {said(recipe.activations)}{kept}"


def _inputs(model: nn.Module) -> list[str]:
    """Return the names of what the model takes; of one that is not one graph "…"."""
    if not isinstance(model, fx.GraphModule):
        return ["…"]
    nodes = model.graph.find_nodes(op="placeholder")
    return [node.name for node in nodes if not node.args]


def _results(results: Mapping[str, float | str]) -> Table:
    return Table((Column("metric", "metric"), Column("value", "value")), tuple(results.items()))


def _tables(reported: Report) -> str:
    return "\n\n".join(table.markdown() for table in reported.tables() if table.rows)
