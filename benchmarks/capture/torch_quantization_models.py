"""Take PyTorch's own quantization test models through every stage.

    python -m benchmarks.capture.torch_quantization_models [--match "Conv*" "*.Conv2d*"]

They are the modules of `torch.testing._internal.common_quantization` that call a convolution or a
linear layer; its import needs `pip install expecttest`. Each is built with its default options, and
with every option changed by itself, gets random batch-norm statistics, and goes through

* `prepare`, with an example and without; min-max, ACIQ and AdaRound at 8/8, calibrated on 8
  batches; `report`, `text`, `save` and `load`, and pickling;
* `lower`, compared with the simulation node by node, and `export_onnx` with onnxruntime.

The table lists layers with quantized weights and inputs, of all there are; int8 layers after
`lower`, or why there are none; the SQNR of the three methods against the float model on the
calibration batches; and that of the lowered model and of the ONNX file against the min-max
simulation. A second table says what failed at which stage. Where a model's outputs are noise, since
inputs that moved by a millionth give others, its SQNRs stand in brackets and are not judged.
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import itertools
import logging
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import fxquant
from benchmarks.capture.torchvision_models import randomize
from fxquant import LoweringError, Recipe
from fxquant.int8.modules import Int8Layer
from fxquant.modules.layers import FUNCTIONAL_LAYERS
from fxquant.numerics.decibels import sqnr

_T = TypeVar("_T")
Batch = dict[str, Any]
_NUM_BATCHES = 8
_LEAST_SQNR = 20.0  # dB; three layers of five channels at 8/8 give 28
_LEAST_PRECISION = 60.0  # dB; a smooth model gives 120
_LEAST_SAME_SQNR = 30.0  # dB; what lies half-way between two integers may go either way
_RECIPES = {
    "min-max": Recipe.minmax(),
    "ACIQ": Recipe.aciq(),
    "AdaRound": Recipe.adaround(weight_bits=8, steps=20),
}
_OPTIONS: dict[str, list[Any]] = {  # what constructors are given, the first with all the others
    "qengine": ["fbgemm"],
    "qconfig": [None],
    "mod_type": ["LSTM"],
    "relu": [True, False],
    "dim": [2, 1],
    "dense_dim": [4],
    "dense_out": [2],
    "embedding_dim": [5],
    "num_embeddings": [10],
    "top_out_in": [2],
    "top_out_out": [2],
}
_SHAPES: tuple[tuple[int, ...], ...] = (
    (2, 3, 5, 5, 5), (2, 3, 10, 10), (2, 3, 4, 4), (2, 2, 10, 10), (2, 6, 8, 8), (2, 3, 1, 19),
    (2, 3, 10), (1, 2, 2), (2, 5), (2, 4), (2, 20), (2, 2),
)  # fmt: skip
_INPUTS: list[Callable[[], Any]] = [  # tried for every argument in turn
    *[partial(torch.rand, shape) for shape in _SHAPES],
    lambda: torch.tensor([0, 3]),  # offsets of two bags
    lambda: torch.randint(10, (3, 4)),  # indices
    lambda: torch.randint(10, (6,)),
    lambda: (torch.rand(1, 2, 2), torch.rand(1, 2, 2)),  # a hidden state
]


@dataclass(frozen=True)
class Subject:
    """One model, and what draws batches for it: arguments by name."""

    name: str
    model: nn.Module
    draw: Callable[[], Batch]


def find_classes() -> dict[str, type[nn.Module]]:
    """Return the modules of `torch.testing._internal.common_quantization` by name.

    Its import changes the process: it parses the arguments and locks `torch.backends`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_quantization as peers
    owners = {"": peers, "TestHelperModules.": peers.TestHelperModules}
    return {
        f"{prefix}{name}": each
        for prefix, owner in owners.items()
        for name, each in vars(owner).items()
        if getattr(each, "__module__", "") == peers.__name__
        and isinstance(each, type)
        and issubclass(each, nn.Module)
    }


def find_subjects(match: list[str]) -> tuple[list[Subject], list[str]]:
    """Return the models whose name matches one of the globs; and of those, which have no layer."""
    subjects, without = [], []
    for name, kind in find_classes().items():
        default, *others = find_options(kind)
        for options in (default, *others):
            changed = [f"{key}={options[key]}" for key in default if options[key] != default[key]]
            shown = f"{name}({', '.join(changed)})" if changed else name
            if not any(fnmatch.fnmatchcase(shown, glob) for glob in match):
                continue
            torch.manual_seed(0)
            model = randomize(build(kind, options)).eval()
            draw = find_inputs(model)
            if draw is not None and count_layers(model, draw()):
                subjects.append(Subject(shown, model, draw))
            else:
                without.append(shown)
    return subjects, without


def find_options(kind: type[nn.Module]) -> list[dict[str, Any]]:
    """Return the arguments to build `kind` with: the defaults, then each option by itself."""
    choices: dict[str, list[Any]] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        default = parameter.default
        if name in _OPTIONS:
            choices[name] = _OPTIONS[name]
        elif isinstance(default, bool):
            choices[name] = [default, not default]
    first = {name: values[0] for name, values in choices.items()}
    return [first, *({**first, name: each} for name in choices for each in choices[name][1:])]


def build(kind: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    """Return a model; the deprecations that its constructor tells are PyTorch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**options)


def find_inputs(model: nn.Module) -> Callable[[], Batch] | None:
    """Return what draws inputs: the model's own examples, or else shapes that it takes, if any."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [each.name for each in parameters if each.default is each.empty]
    for offered in ("get_example_inputs", "example_inputs"):
        if hasattr(model, offered):
            own: Callable[[], tuple[Tensor, ...]] = getattr(model, offered)
            return lambda: dict(zip(names, own(), strict=True))
    for makers in itertools.product(_INPUTS, repeat=len(names)):
        draw = partial(_call_each, dict(zip(names, makers, strict=True)))
        try:
            count_layers(model, draw())
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            continue
        return draw
    return None


def _call_each(makers: dict[str, Callable[[], Any]]) -> Batch:
    return {name: make() for name, make in makers.items()}


def count_layers(model: nn.Module, batch: Batch) -> int:
    """Return how often the model calls a convolution or a linear layer."""
    counter = _LayerCounter()
    with torch.no_grad(), counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # x.T of a batch, of a model without a layer
        model(**batch)
    return counter.num_calls


class _LayerCounter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.num_calls: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += func in FUNCTIONAL_LAYERS
        return func(*args, **kwargs or {})


@dataclass
class Stages:
    """Runs one stage after the other, and keeps what they raise."""

    failures: list[list[str]] = field(default_factory=list)

    def run(self, stage: str, function: Callable[..., _T], *arguments: Any) -> _T | None:
        """Return what `function` returns; None if it raises, or if what it needs is missing."""
        if any(each is None for each in arguments):
            return None
        try:
            return function(*arguments)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            self.failures.append([stage, f"{type(error).__name__}: {lines[0]}"])
            return None

    def agreement(
        self, stage: str, expected: Tensor | None, found: Tensor | None, least: float
    ) -> str:
        """Return the SQNR for the table, "" where it is missing; less than `least` is a failure."""
        if expected is None or found is None:
            return ""
        found_sqnr = sqnr(expected, found)
        if not found_sqnr >= least:
            self.failures.append([stage, f"{found_sqnr:.1f} dB, less than {least}"])
        return f"{found_sqnr:.1f}"


def measure(subject: Subject, onnx: bool = True) -> tuple[list[object], list[list[str]]]:
    """Return the table's row of one model, and which stages failed, each with its reason."""
    stages, model = Stages(), subject.model
    batches = [subject.draw() for _ in range(_NUM_BATCHES)]
    expected = outputs(model, batches)
    noisy = is_noise(model, batches)
    least, least_same = (-math.inf, -math.inf) if noisy else (_LEAST_SQNR, _LEAST_SAME_SQNR)
    stages.run("prepare with an example", require_same_with_example, model, batches)
    losses, simulated, same = [], None, None
    for name, recipe in _RECIPES.items():
        quantized = stages.run(name, quantize, model, batches, recipe)
        found = stages.run(f"{name}: call", outputs, quantized, batches)
        losses.append(stages.agreement(f"{name} against float", expected, found, least))
        if simulated is None:
            simulated, same = quantized, found
    report = stages.run("report", fxquant.report, simulated)
    stages.run("text", fxquant.text, simulated)
    stages.run("save and load", require_stored, simulated, batches, save_and_load)
    stages.run("pickle", require_stored, simulated, batches, pickle_and_unpickle)
    lowered = stages.run("lower", lower, simulated, batches)
    in_int8: object = lowered
    integers: Tensor | None = None
    if isinstance(lowered, nn.Module):
        integers = stages.run("lowered: call", outputs, lowered, batches)
        in_int8 = sum(isinstance(module, Int8Layer) for module in lowered.modules())
    losses.append(stages.agreement("lowered against simulated", same, integers, least_same))
    if onnx:
        any_batch = takes_any_batch(model, batches[0])
        exported = stages.run("export_onnx", onnx_outputs, simulated, batches, any_batch)
        losses.append(stages.agreement("ONNX against simulated", same, exported, least_same))
    rows = [] if report is None else [each for each in report.rows if each.weights and each.inputs]
    num_layers = count_layers(model, batches[0])
    if len(rows) < num_layers:
        stages.failures.append(["report", f"{num_layers - len(rows)} layers are not quantized"])
    shown = [f"({each})" if noisy else each for each in losses]
    return [subject.name, f"{len(rows)}/{num_layers}", in_int8, *shown], stages.failures


def is_noise(model: nn.Module, batches: list[Batch]) -> bool:
    """Say whether the model's outputs are other ones if its inputs move by a millionth."""
    moved = [
        {name: each * (1 + 1e-6) if each.is_floating_point() else each for name, each in b.items()}
        for b in batches
    ]
    return sqnr(outputs(model, batches), outputs(model, moved)) < _LEAST_PRECISION


def require_same_with_example(model: nn.Module, batches: list[Batch]) -> None:
    """Raise `ValueError` if an example, which tells ranks, leads to another quantized model."""
    recipe = Recipe.minmax()
    told = fxquant.quantize(model, batches, recipe, example_inputs=batches[0], progress=False)
    if not torch.equal(outputs(told, batches), outputs(quantize(model, batches, recipe), batches)):
        raise ValueError("the outputs differ from those without")


def quantize(model: nn.Module, batches: list[Batch], recipe: Recipe) -> nn.Module:
    """Return the fake-quantized model."""
    return fxquant.quantize(model, batches, recipe, progress=False)


@torch.no_grad()
def outputs(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Return all that the model returns for all batches, as one row."""
    leaves = [leaf for batch in batches for leaf in tree_leaves(model(**batch))]
    return torch.cat([leaf.flatten() for leaf in leaves])


def require_stored(
    model: nn.Module, batches: list[Batch], store: Callable[[nn.Module], nn.Module]
) -> None:
    """Raise `ValueError` if what `store` brings back computes anything else."""
    if not torch.equal(outputs(store(model), batches), outputs(model, batches)):
        raise ValueError("the outputs differ")


def save_and_load(model: nn.Module) -> nn.Module:
    """Return the model from a file of `fxquant.save`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.fxq"
        fxquant.save(model, path)
        return fxquant.load(path)


def pickle_and_unpickle(model: nn.Module) -> nn.Module:
    """Return the model from a pickle."""
    unpickled = pickle.loads(pickle.dumps(model))
    assert isinstance(unpickled, nn.Module)
    return unpickled


def lower(simulated: nn.Module, batches: list[Batch]) -> nn.Module | str:
    """Return the model on int8 kernels, or why there is no kernel for any layer in it.

    Raises:
        ValueError: a node computes something else than the simulation.
    """
    try:
        lowered = fxquant.lower(simulated, batches[0])
    except LoweringError as error:
        _, is_refused, reason = str(error).partition("no layer can work on integers: not lowered: ")
        if not is_refused:
            raise
        return reason
    departure = fxquant.compare(simulated, lowered, batches).first_departure
    if departure is not None:
        raise ValueError(f"{departure.name} ({departure.kind}) departs: {departure.alone}")
    return lowered


def onnx_outputs(simulated: nn.Module, batches: list[Batch], any_batch: bool) -> Tensor:
    """Return what onnxruntime computes from the exported file for all batches, as one row."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fxquant.export_onnx(simulated, path, batches[0], dynamic_batch=any_batch)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        rows = [
            session.run(None, {name: each.numpy() for name, each in batch.items()})
            for batch in batches
        ]
    return torch.cat([torch.from_numpy(leaf).flatten() for row in rows for leaf in row])


def takes_any_batch(model: nn.Module, batch: Batch) -> bool:
    """Say whether the model takes one sample more, too."""
    try:
        with torch.no_grad():
            model(**{name: torch.cat([each, each[:1]]) for name, each in batch.items()})
    except RuntimeError:
        return False
    return True


def main() -> None:
    """Print the tables; exit with an error if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--match", nargs="+", default=["*"], help="globs on the first column")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="export nothing")
    options = parser.parse_args()
    logging.disable()
    rows, failed = [], []
    subjects, without = find_subjects(options.match)
    for subject in tqdm(subjects, disable=None):
        row, failures = measure(subject, options.onnx)
        rows.append(row)
        failed += [[subject.name, *failure] for failure in failures]
    columns = ["model", "layers 8/8", "in int8", *[f"{name} dB" for name in _RECIPES]]
    columns += ["lowered dB", "ONNX dB"] if options.onnx else ["lowered dB"]
    print(tabulate(rows, columns, disable_numparse=True))
    print(f"\nwithout a convolution or a linear layer: {', '.join(without) or 'none'}")
    if failed:
        print()
        print(tabulate(failed, ["model", "failed at", "why"]))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
