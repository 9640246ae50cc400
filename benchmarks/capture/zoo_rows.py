"""One model of the zoo through every stage: what came of it, as a row."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

import fxquant
from benchmarks.capture.multiply_adds import counting, counting_calls, no_fast_path
from benchmarks.capture.naive_minmax import hooked_minmax
from benchmarks.capture.torchvision_detection import count_batchnorms, tensors
from benchmarks.capture.zoo_models import Compared, Subject, call, floats, returned
from fxquant.capture.naming import find_regions
from fxquant.graph.operations import data_input, is_batchnorm, module_of, operation_of
from fxquant.int8.modules import Int8Layer
from fxquant.modules.layers import layer_type
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.containers import map_leaves
from fxquant.numerics.decibels import sqnr
from fxquant.reporting.rows import row_of_call
from fxquant.storage.encoding import Encoder

LEAST_EQUAL = 60.0
"""In dB: a captured model computes what the caller's does, up to rounding in float32."""
LEAST_CLOSE = 30.0
"""In dB: a model in integers computes what the simulated one does, up to single steps."""
_BATCHES = (1, 2, 3)
_EXAMPLE = 2
_Kind = TypeVar("_Kind", bound=nn.Module)


@dataclass
class Row:
    """What the table says of one model."""

    name: str
    graph: str = ""
    """"whole", or the number of regions."""
    multiply_adds: float = math.nan
    """Of convolutions and linear layers on the example, in 10⁹."""
    quantized: float = math.nan
    """Share of those in layers with 8-bit weights and inputs, in percent."""
    int8: float = math.nan
    """Share of those in int8 kernels after `lower`, in percent."""
    products: float = math.nan
    """Multiply-adds of attention and the like, in percent of all."""
    recurrent: float = math.nan
    """Multiply-adds of recurrent layers, in percent of all."""
    decibels: float = math.nan
    """Of the first output at 8/8, against the float model."""
    naive_decibels: float = math.nan
    """The same of `benchmarks.capture.naive_minmax`."""
    norms_left: int = 0
    """Batch norms that are still called."""
    norms_behind_layers: int = 0
    """Those of which nothing else takes the output of the layer before."""
    passed: dict[str, bool] = field(default_factory=dict)
    """By stage: batches, lower, onnx, save, pickle."""
    agreements: dict[str, float] = field(default_factory=dict)
    """In dB, of the least similar output: batches, lower, onnx."""
    seconds: float = math.nan
    """Of prepare, calibrate and convert."""
    failures: dict[str, str] = field(default_factory=dict)
    """By stage: the first line of what went wrong."""
    in_python: list[str] = field(default_factory=list)
    """What is in no region, and why."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note what fails inside, and go on behind."""
        try:
            yield
            self.passed[name] = True
        except Exception as error:
            self.passed[name] = False
            self.failures[name] = first_line(error)


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its words."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def measure(
    name: str, subject: Subject, recipe: str = "aciq", stages: Collection[str] | None = None
) -> Row:
    """Return the row of a model; what fails leaves its cells empty.

    Args:
        name: the row's.
        subject: from `benchmarks.capture.zoo_models.build`.
        recipe: "aciq" or "minmax".
        stages: which of `STAGES` the converted model goes through; None: all.
    """
    row, model, batch = Row(name), subject.model, subject.batch(_EXAMPLE)
    with torch.no_grad():
        with row.stage("count"), counting(model) as counted:
            call(model, batch)
        row.multiply_adds = counted.layers / 1e9
        everything = counted.layers + counted.products + counted.recurrent
        row.products = _percent(counted.products, everything)
        row.recurrent = _percent(counted.recurrent, everything)
        with row.stage("naive"), no_fast_path():
            naive = hooked_minmax(model, lambda simulated: call(simulated, batch))
            row.naive_decibels = _agreement(subject, naive, batch)
        with row.stage("quantize"):
            start = time.perf_counter()
            prepared = fxquant.prepare(model, recipe, example_inputs=batch)
            fxquant.calibrate(prepared, [batch], progress=False)
            quantized = fxquant.convert(prepared, progress=False)
            row.seconds = time.perf_counter() - start
        if not row.passed["quantize"]:
            return row
        with row.stage("report"):
            _describe(row, quantized)
        with row.stage("run"):
            row.quantized = _share(quantized, _quantized_layers(quantized), batch, counted.layers)
            row.decibels = _agreement(subject, quantized, batch)
        with row.stage("batches"):
            _compare_batches(row, subject, prepared)
        if row.passed["run"]:
            made = _Made(subject, quantized, batch, counted.layers)
            for each in STAGES if stages is None else stages:
                with row.stage(each):
                    STAGES[each](row, made)
    return row


@dataclass(frozen=True)
class _Made:
    """A converted model, and what it is to be compared with."""

    subject: Subject
    quantized: nn.Module
    batch: Any
    multiply_adds: int
    """Of the float model's layers."""

    def require_close(self, actual: list[Tensor], compared: Compared) -> float:
        """Return the SQNR in dB of the output least like the simulated model's.

        Raises:
            ValueError: by more than single steps, `LEAST_CLOSE`, and by more than that model's
                differs from the float model's.
        """
        expected = compared(self.quantized, self.batch)
        allowed = _agreements(compared(self.subject.model, self.batch), expected)
        agreements = _agreements(expected, actual)
        steady = _steadiness(self.subject.model, self.batch, compared)
        for place, (agreement, least) in enumerate(zip(agreements, allowed, strict=True)):
            if not agreement >= min(LEAST_CLOSE, least - 3, steady[place] - 3):
                raise ValueError(f"output {place}: {agreement:.1f} dB, float {least:.1f} dB")
        return min(agreements)

    def require_same(self, copied: nn.Module) -> None:
        """Raise `ValueError` unless a copy returns exactly what the simulated model returns."""
        sides = (self.subject.compared(each, self.batch) for each in (self.quantized, copied))
        agreement = min(_agreements(*sides))
        if agreement != math.inf:
            raise ValueError(f"outputs agree to {agreement:.1f} dB only")


def _lower(row: Row, made: _Made) -> None:
    lowered = fxquant.lower(made.quantized, made.batch)
    row.int8 = _share(lowered, _modules(lowered, Int8Layer), made.batch, made.multiply_adds)
    outputs = made.subject.compared(lowered, made.batch)
    row.agreements["lower"] = made.require_close(outputs, made.subject.compared)
    for number in _BATCHES:
        call(lowered, made.subject.batch(number))


def _export_onnx(row: Row, made: _Made) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        with contextlib.redirect_stdout(io.StringIO()):
            fxquant.export_onnx(made.quantized, path, made.batch)
        outputs = _run_onnx(path, made.batch)
    row.agreements["onnx"] = made.require_close(outputs, returned)


def _save(_: Row, made: _Made) -> None:
    encoder = Encoder()
    encoder.encode(made.quantized, "model")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.fxq")
        fxquant.save(made.quantized, path)
        loaded = fxquant.load(path, custom=encoder.custom.values())
    made.require_same(loaded)


def _pickle(_: Row, made: _Made) -> None:
    made.require_same(pickle.loads(pickle.dumps(made.quantized)))


STAGES: dict[str, Callable[[Row, _Made], None]] = {
    "lower": _lower,
    "onnx": _export_onnx,
    "save": _save,
    "pickle": _pickle,
}
"""What a converted model goes through."""


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan


def _agreement(subject: Subject, version: nn.Module, batch: Any) -> float:
    """Return the SQNR of the first output of `version` against the float model's, in dB."""
    expected, actual = subject.compared(subject.model, batch), subject.compared(version, batch)
    if not all(bool(torch.isfinite(each).all()) for each in actual):
        raise ValueError("the output is not finite")
    return sqnr(expected[0], actual[0])


def _compare_batches(row: Row, subject: Subject, prepared: nn.Module) -> None:
    """Raise `ValueError` unless the captured model returns what the caller's does."""
    for number in _BATCHES:
        batch = subject.batch(number)
        expected, actual = type(call(subject.model, batch)), type(call(prepared, batch))
        if actual is not expected:
            raise ValueError(f"returns a {actual.__name__}, not a {expected.__name__}")
        pair = subject.compared(subject.model, batch), subject.compared(prepared, batch)
        agreements = _agreements(*pair)
        row.agreements["batches"] = min(row.agreements.get("batches", math.inf), *agreements)
        if min(agreements) >= LEAST_EQUAL:
            continue
        steady = _steadiness(subject.model, batch, subject.compared)
        for agreement, most in zip(agreements, steady, strict=True):
            if not agreement >= min(LEAST_EQUAL, most - 10):
                raise ValueError(f"batches of {number} agree to {agreement:.1f} dB")


def _steadiness(model: nn.Module, batch: Any, compared: Compared) -> list[float]:
    """Return what becomes of a change in the inputs' last bits, in dB of each output.

    Little where a model chooses the best few of many: then no version of it can come closer.
    """
    nudged = map_leaves(batch, _nudged)
    return _agreements(compared(model, batch), compared(model, nudged))


def _nudged(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value * (1 + 1e-6 * torch.randn_like(value)) if is_float else value


def _agreements(expected: list[Tensor], actual: list[Tensor]) -> list[float]:
    """Return the SQNR of each output in dB.

    Raises:
        ValueError: the shapes differ, or there is none.
    """
    shapes, others = ([tuple(each.shape) for each in side] for side in (expected, actual))
    if shapes != others or not shapes:
        raise ValueError(f"returns {others}, not {shapes}")
    return [sqnr(*pair) for pair in zip(expected, actual, strict=True)]


def _share(
    version: nn.Module, layers: list[QuantizedLayer] | list[Int8Layer], batch: Any, whole: int
) -> float:
    """Return the multiply-adds of `layers` when `version` is called, in percent of `whole`."""
    with counting_calls(layers) as calls:
        call(version, batch)
    return _percent(sum(calls.values()), whole)


def _quantized_layers(quantized: nn.Module) -> list[QuantizedLayer]:
    """Return the layers whose input is quantized, too, at every call."""
    in_float = {
        gm.get_submodule(str(node.target))
        for gm in find_regions(quantized).values()
        for node in gm.graph.find_nodes(op="call_module")
        if not row_of_call(gm, node, {}).inputs
    }
    return [each for each in _modules(quantized, QuantizedLayer) if each not in in_float]


def _modules(model: nn.Module, kind: type[_Kind]) -> list[_Kind]:
    return [module for module in model.modules() if isinstance(module, kind)]


def _describe(row: Row, quantized: nn.Module) -> None:
    """Fill in what `quantized` looks like."""
    regions = find_regions(quantized)
    row.graph = "whole" if isinstance(quantized, fx.GraphModule) else str(len(regions))
    row.norms_left = count_batchnorms(quantized)
    row.norms_behind_layers = sum(
        _stands_behind_layer(gm, node) for gm in regions.values() for node in gm.graph.nodes
    )
    row.in_python = [
        f"{each.path or '(the model)'}: {each.kind}: {each.reason}"
        for each in fxquant.report(quantized).untraced
    ]


def _stands_behind_layer(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a batch norm takes the result of a layer that nothing else takes."""
    source = data_input(node) if is_batchnorm(gm, node) else None
    if source is None or not _is_layer(module_of(gm, source)):
        return False
    return all(user is node or operation_of(gm, user).kind == "shape" for user in source.users)


def _is_layer(module: nn.Module | None) -> bool:
    return layer_type(module) is not None or isinstance(module, QuantizedLayer)


def _run_onnx(path: Path, batch: Any) -> list[Tensor]:
    """Return the floating-point outputs of an ONNX file in onnxruntime."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = [each.name for each in session.get_inputs()]
    given = batch if isinstance(batch, dict) else dict(zip(inputs, tensors(batch), strict=True))
    outputs = session.run(None, {name: given[name].numpy() for name in inputs})
    return floats([torch.from_numpy(output) for output in outputs])
