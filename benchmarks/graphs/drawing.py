"""A model, its inputs and a recipe, drawn by choices: as Python code, which is all there is of it.

The code runs by itself where PyTorch and fxquant are installed: what fails is reported as it is.
"""

from __future__ import annotations

import copy
import linecache
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.graphs import layer_steps, other_steps
from benchmarks.graphs.choices import Choices
from benchmarks.graphs.draft import Draft, Impossible
from benchmarks.graphs.recipes import draw_recipe
from fxquant.numerics.containers import cloned

SETTINGS = 3
"""So many steps come before those that make the model: inputs, outputs, recipe."""
MOST_STEPS = 20
_KINDS: list[tuple[int, Callable[[Draft], None]]] = [
    (8, layer_steps.convolution), (5, layer_steps.linear), (2, layer_steps.norm),
    (8, other_steps.activation), (4, other_steps.addition), (3, layer_steps.block),
    (2, other_steps.multiplication), (3, other_steps.concatenation), (3, other_steps.pool),
    (3, other_steps.move), (2, other_steps.part_of), (2, other_steps.split),
    (2, other_steps.with_number), (1, other_steps.addition_in_place), (2, other_steps.change),
    (1, other_steps.squeeze_excite), (2, layer_steps.transposed), (1, layer_steps.attention),
    (1, layer_steps.recurrent), (1, layer_steps.embedding), (2, layer_steps.shared),
    (1, layer_steps.of_constants), (1, layer_steps.bilinear), (1, other_steps.dropout),
    (1, other_steps.pad), (1, other_steps.resize), (2, other_steps.python),
    (1, other_steps.counted),
]  # fmt: skip
STEPS = [kind for weight, kind in _KINDS for _ in range(weight)]
_INPUTS: tuple[dict[str, tuple[int, ...]], ...] = (
    {"x": (3, 8, 8)}, {"x": (4, 7, 9)}, {"x": (8, 6, 6)}, {"x": (12,)}, {"x": (6, 8)},
    {"x": (2, 4, 6, 6)}, {"x": (4, 7, 7), "y": (4, 7, 7)}, {"x": (5, 8), "y": (8,)},
    {"x": (8, 10, 6)}, {"tokens": (5,), "x": (5, 8)}, {"x": (16, 5, 5), "y": (1, 1, 1)},
)  # fmt: skip
_CHANNELS_LAST = """\
for each in model.parameters():
    if each.dim() == 4:
        each.data = each.data.to(memory_format=torch.channels_last)"""
_SOURCE = """\
import math
import operator

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fxquant import Recipe, Rule, TensorSpec


class Model(nn.Module):
    def __init__(self):
        super().__init__()
{parts}

    def forward(self, {arguments}):
{lines}


torch.manual_seed({seed})
model = Model()
for norm in model.modules():
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
{settings}
batches = [
{batches}
]
recipe = {recipe}
with_example = {with_example}
"""


@dataclass(frozen=True)
class Subject:
    """What was drawn."""

    code: str
    model: nn.Module
    batches: list[dict[str, Tensor]]
    """Keywords of two calls; the second batch may be of another length."""
    recipe: Any
    with_example: bool
    """Whether `prepare` gets the first batch as an example."""
    custom: list[type]
    """Classes that files of it may name."""


@dataclass(frozen=True)
class _Inputs:
    """What a model is called with, and how it is set up."""

    shapes: dict[str, tuple[int, ...]]
    """By name, without the batch."""
    length: int
    spread: str
    is_double: bool
    seed: int
    settings: list[str]

    @classmethod
    def drawn(cls, choices: Choices) -> _Inputs:
        """Return inputs drawn by choices."""
        shapes, length = choices.pick(_INPUTS), choices.pick((2, 1, 3))
        spread = choices.pick(("randn({0})", "randn({0})", "rand({0})", "randn({0}) * 3 + 1"))
        is_double, seed = choices.one_in(25), choices.below(1000)
        settings = ["model.double()"] if is_double else []
        settings += choices.pick((["model.eval()"], ["model.eval()"], ["model.train()"], []))
        if choices.one_in(12):
            settings.append(_CHANNELS_LAST)
        return cls(shapes, length, spread, is_double, seed, settings)

    def batch(self, length: int) -> str:
        """Return the expression of a batch of that length."""
        made = []
        for name, shape in self.shapes.items():
            size = ", ".join(map(str, (length, *shape)))
            form = f"torch.{self.spread.format(size)}"
            form = f"({form}).double()" if self.is_double else form
            form = f"torch.randint(12, ({size}))" if name == "tokens" else form
            made.append(f'"{name}": {form}')
        return f"{{{', '.join(made)}}}"


def draw(choices: Choices) -> Subject:
    """Return a model with its inputs and recipe, in eval mode or not.

    Raises:
        Impossible: the steps gave one that does not run, about one in a thousand.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _drawn(choices)


def _drawn(choices: Choices) -> Subject:
    choices.next_step()
    inputs = _Inputs.drawn(choices)
    torch.manual_seed(inputs.seed)
    draft = Draft(choices, eval(inputs.batch(inputs.length), {"torch": torch}))
    choices.next_step()
    form, depth = choices.below(8), choices.pick((1, 2, 3))
    has_example, has_head = choices.below(4) > 0, not choices.one_in(4)
    other = choices.pick((inputs.length, 1, inputs.length + 1))
    choices.next_step()
    recipe = draw_recipe(choices)
    while choices.next_step():
        draft.step(choices.pick(STEPS))
    if has_head:
        draft.choices = Choices([[]])
        draft.choices.next_step()
        draft.step(layer_steps.convolution if inputs.seed % 2 else layer_steps.linear)
    code = _SOURCE.format(
        parts=_indented(draft.parts),
        arguments=", ".join(inputs.shapes),
        lines=_indented([*draft.lines, f"return {_output(draft, form, depth)}"]),
        seed=inputs.seed,
        settings="\n".join(inputs.settings),
        batches="{batches}",
        recipe=_named(draft, recipe),
        with_example=has_example,
    )
    for lengths in ((inputs.length, other), (inputs.length, inputs.length)):
        made = ",\n".join(f"    {inputs.batch(each)}" for each in lengths)
        subject = subject_of(code.replace("{batches}", made))
        if _runs(subject):
            return subject
    raise Impossible("the model does not take its inputs")


def _indented(lines: list[str]) -> str:
    return "\n".join(f"        {each}" for each in lines)


def _named(draft: Draft, recipe: str) -> str:
    """Return the recipe with the name of a layer of the model in its rules."""
    layers = [part for part in draft.parts if "nn.Conv" in part or "nn.Linear" in part]
    name = layers[0].split(" = ")[0].removeprefix("self.") if layers else ""
    return recipe.replace("{layer}", name)


def _output(draft: Draft, form: int, depth: int) -> str:
    """Return what `forward` returns: the last value, or several in a container."""
    names = [name for name, x in draft.values.items() if isinstance(x, Tensor)][-depth:]
    last, listed = names[-1], ", ".join(names)
    keyed = ", ".join(f'"{name}": {name}' for name in names)
    forms = {
        4: f"({listed},)",
        5: f"{{{keyed}}}",
        6: f"[{last}, {{'all': ({listed},)}}, {last}.shape[0], None]",
        7: f"{last}, {last}.argmax(-1)",
    }
    return forms.get(form, last)


def subject_of(code: str) -> Subject:
    """Run the code of a drawn model; return what it makes."""
    name = f"<drawn {hash(code)}>"  # so that errors show the line
    linecache.cache.clear()
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    module = types.ModuleType("drawn")
    sys.modules["drawn"] = module  # where files find its class
    made: dict[str, Any] = vars(module)
    exec(compile(code, name, "exec"), made)
    return Subject(
        code, made["model"], made["batches"], made["recipe"], made["with_example"], [made["Model"]]
    )


def _runs(subject: Subject) -> bool:
    """Say whether the model takes all its batches, one behind the other and each as the first."""
    once = copy.deepcopy(subject.model).eval()
    with torch.no_grad():
        try:
            for batch in subject.batches:
                once(**cloned(batch))
                copy.deepcopy(subject.model).eval()(**cloned(batch))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return False
    return True
