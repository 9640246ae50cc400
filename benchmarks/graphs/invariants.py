"""What must hold of a model that was drawn, and whether it does.

| invariant | holds if |
|---|---|
| prepare | it gives what the model gives: to the bit, or, where layers are folded, to 69 dB |
| inputs | it changes no tensor of the caller's that the model leaves alone |
| convert | outputs agree to 25 dB, or as well as the worst draw of noise in the place of rounding |
| report | the tables can be made |
| lower | no node, alone, is more than a step off the simulation |
| lowered outputs | they agree with the simulation's to 30 dB |
| to_qdq | it gives what the simulation gives, to the bit |
| save | what is loaded prints and gives the same, to the bit: of all four forms |
| caller | the model, and each form that another was made of, is as it was |
| passes | each alone: the second run finds nothing, another graph over the same modules stays |
| export_onnx | onnxruntime gives what the simulation gives |

An error of fxquant's own is a refusal, with its first line as reason; any other breaks what is
asked. A model that makes as much of a change of its inputs in the last bits is explained by that;
one with less than 4 bits, if noise leaves less than 25 dB: there errors are no noise any more; one
whose biases are corrected, where a layer pads more than there is: the correction is of unpadded
inputs.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

import fxquant
from benchmarks.graphs.alone import (
    AGAIN,
    find_changes,
    held_by,
    is_equal,
    passes_in_order,
    sibling,
)
from benchmarks.graphs.drawing import Subject
from benchmarks.graphs.noise import with_noise
from fxquant import FxquantError, Pass
from fxquant.graph.operations import module_of
from fxquant.graph.records import record
from fxquant.int8.onednn import why_unavailable
from fxquant.modules.own import own_modules
from fxquant.numerics.containers import cloned, map_leaves
from fxquant.numerics.decibels import sqnr
from fxquant.numerics.differences import find_differences

Verdict = Literal["held", "explained", "refused", "broken"]
_LEAST = 25.0  # dB
_LOWERED = 30.0  # dB
_MORE_THAN_NOISE = 6.0  # dB: noise is drawn, and rounding depends on what it rounds
_FEW_BITS = 4
_DRAWS = 20  # a value jumps over a threshold (`Hardshrink`) once in so many
_REARRANGING = {
    "LiftProducts",
    "FoldBatchNorm",
    "AbsorbBatchNorm",
    "EqualizeLayers",
    "AbsorbBiases",
    "FoldConstants",
    "ExpandAttention",
}
"""Passes that compute the same in another order of operations.

What folding makes of a computed weight requires a gradient, and with such a one PyTorch's `linear`
takes another way through inputs that are not contiguous.
"""
_REARRANGED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that are captured as other operations than they run."""
_logger = logging.getLogger("fxquant")


class Broken(AssertionError):
    """An invariant does not hold."""


class Explained(Exception):
    """An invariant cannot hold for this model, by a rule."""


@dataclass(frozen=True)
class Finding:
    """What became of one invariant of one model."""

    invariant: str
    verdict: Verdict
    words: str = ""


def check(subject: Subject, *, passes: bool = True, onnx: bool = False) -> list[Finding]:
    """Return what became of each invariant.

    Args:
        subject: the model, its inputs and recipe.
        passes: whether each pass is run alone, too.
        onnx: whether an ONNX file is written, and run where onnxruntime is installed.
    """
    with torch.random.fork_rng(), warnings.catch_warnings(), _silence():  # fx prints what fails
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        checks = _Checks(subject)
        checks.run(onnx)
        if passes:
            checks.run_passes()
    return checks.findings


@dataclass
class _Checks:
    subject: Subject
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.subject.model
        self.floats = copy.deepcopy(self.model).eval()
        self.expected = [self.call(self.floats, batch) for batch in self.subject.batches]

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """Return what `model`, or a copy where calls leave something in it, gives for the batch."""
        is_still = isinstance(model, fx.GraphModule) and not any(
            module.watches for _, module in own_modules(model)
        )
        with torch.no_grad():
            return cloned((model if is_still else copy.deepcopy(model))(**cloned(batch)))

    @contextlib.contextmanager
    def of(self, invariant: str) -> Iterator[None]:
        """Note what becomes of an invariant."""
        verdict: Verdict = "held"
        words = ""
        try:
            yield
        except Explained as reason:
            verdict, words = "explained", str(reason)
        except FxquantError as error:
            verdict, words = "refused", f"{type(error).__name__}: {_first_line(error)}"
        except AssertionError as error:
            verdict, words = "broken", _first_line(error)
        except Exception as error:
            verdict, words = "broken", f"raises {type(error).__name__}: {_first_line(error)}"
        self.findings.append(Finding(invariant, verdict, words))

    def held(self) -> bool:
        """Say whether the last invariant has given something to go on with."""
        return self.findings[-1].verdict != "refused" and not self.findings[-1].words.startswith(
            "raises"
        )

    def run(self, onnx: bool) -> None:
        """Go through all forms of the model."""
        subject = self.subject
        before = held_by(self.model)
        with self.of("prepare"):
            prepared = self.prepare()
        if self.findings[-1].verdict == "held":
            with self.of("inputs"):
                self.check_inputs(prepared)
            with self.of("calibrate"):
                for batch in subject.batches:
                    fxquant.calibrate(prepared, [cloned(batch)], progress=False)
        if self.held() and self.findings[-1].invariant == "calibrate":
            with self.of("convert"):
                was = held_by(prepared)
                quantized = fxquant.convert(prepared, progress=False)
                _require_same(was, prepared, "the prepared model")
                self.check_noise(prepared, quantized)
            if self.held():
                self.run_converted(prepared, quantized, onnx)
        with self.of("caller"):
            _require_same(before, self.model, "the model")

    def prepare(self) -> nn.Module:
        """Return the prepared model; raise if it gives something else than the float one."""
        subject = self.subject
        example = cloned(subject.batches[0]) if subject.with_example else None
        with _changes() as changed:
            prepared = fxquant.prepare(self.model, subject.recipe, example_inputs=example)
        is_exact = not changed & _REARRANGING and not any(
            isinstance(each, _REARRANGED) for each in self.model.modules()
        )
        for number, (batch, expected) in enumerate(
            zip(subject.batches, self.expected, strict=True)
        ):
            found = self.call(prepared, batch)
            if is_equal(found, expected):
                continue
            if is_exact:
                raise Broken(f"batch {number}: nothing was folded, and the outputs differ")
            self.require_close(expected, found, batch, self.floats, f"batch {number}")
        return prepared

    def require_close(
        self, expected: Any, found: Any, batch: dict[str, Tensor], model: nn.Module, where: str
    ) -> None:
        """Raise if results differ by more than rounding, unless inputs' last bits do as much."""
        differences = find_differences(expected, found)
        if not differences:
            return
        nudged = self.call(model, map_leaves(batch, _nudged))
        if find_differences(expected, nudged):
            raise Explained("the inputs' last bits change as much")
        raise Broken(f"{where}: {differences[0]}")

    def check_inputs(self, prepared: nn.Module) -> None:
        """Raise if the copy changes an input that the model leaves alone."""
        batch = self.subject.batches[0]
        mine, theirs = cloned(batch), cloned(batch)
        with torch.no_grad():
            copy.deepcopy(self.floats)(**theirs)
            copy.deepcopy(prepared)(**mine)
        for name, x in batch.items():
            if not is_equal(mine[name], x) and find_differences(theirs[name], mine[name]):
                raise Broken(f"input {name!r}")

    def check_noise(self, prepared: nn.Module, quantized: nn.Module) -> None:
        """Raise if quantization costs more than noise of its steps' width."""
        found = self.worst(quantized)
        if found >= _LEAST:
            return
        batches = self.subject.batches
        drawn = min(self.worst(with_noise(prepared, quantized, batches)) for _ in range(_DRAWS))
        if found >= drawn - _MORE_THAN_NOISE or (self.has_few_bits(quantized) and drawn < _LEAST):
            raise Explained("noise in the place of rounding costs as much")
        if self.subject.recipe.bias_correction is True and _pads_most(quantized):
            raise Explained("biases are corrected for inputs without their padding")
        raise Broken(f"{found:.1f} dB, where noise in the place of rounding leaves {drawn:.1f}")

    def worst(self, model: nn.Module) -> float:
        """Return the SQNR in dB of the batch whose output agrees least with the float model's."""
        pairs = zip(self.subject.batches, self.expected, strict=True)
        return min(agreement(expected, self.call(model, batch)) for batch, expected in pairs)

    def has_few_bits(self, quantized: nn.Module) -> bool:
        """Say whether something is rounded to so few bits that errors are no noise any more."""
        specs = [module.fixed_spec for _, module in own_modules(quantized)]
        return any(spec is not None and spec.bits < _FEW_BITS for spec in specs)

    def run_converted(self, prepared: nn.Module, quantized: nn.Module, onnx: bool) -> None:
        """Go through what a converted model becomes."""
        ways = self.subject.recipe.target.ways
        was, forms = held_by(quantized), {"prepared": prepared, "converted": quantized}
        with self.of("report"):
            fxquant.text(quantized)
            str(fxquant.report(quantized))
        if "lower" in ways and why_unavailable() is None:
            with self.of("lower"):
                forms["lowered"] = fxquant.lower(quantized)
                batches = map(cloned, self.subject.batches)
                comparison = fxquant.compare(copy.deepcopy(quantized), forms["lowered"], batches)
                first = comparison.first_departure
                if first is not None:
                    what = f"{first.alone.largest:.1f} steps, {first.alone.sqnr:.1f} dB"
                    raise Broken(f"{first.name}, a {first.kind}, is off by {what}")
            if "lowered" in forms:
                with self.of("lowered outputs"):
                    self.check_lowered(quantized, forms["lowered"])
        if "to_qdq" in ways:
            with self.of("to_qdq"):
                forms["standard"] = fxquant.to_qdq(quantized)
                self.check_standard(quantized, forms["standard"])
        for name, form in forms.items():
            with self.of(f"save {name}"):
                self.check_file(form)
        if onnx and "export_onnx" in ways:
            silent = contextlib.redirect_stdout(io.StringIO())
            with self.of("export_onnx"), tempfile.TemporaryDirectory() as folder, silent:
                path, example = Path(folder, "model.onnx"), cloned(self.subject.batches[0])
                fxquant.export_onnx(quantized, path, example)
        with self.of("caller"):
            _require_same(was, quantized, "the converted model")

    def check_lowered(self, quantized: nn.Module, lowered: nn.Module) -> None:
        """Raise if the outputs differ by more than steps that went the other way explain."""
        for number, batch in enumerate(self.subject.batches):
            simulated = self.call(quantized, batch)
            found = agreement(simulated, self.call(lowered, batch))
            if found >= _LOWERED:
                continue
            steady = agreement(simulated, self.call(quantized, map_leaves(batch, _nudged)))
            lost = agreement(self.expected[number], simulated)
            if found < min(steady, lost) - _MORE_THAN_NOISE:
                raise Broken(f"batch {number}: {found:.1f} dB")
            raise Explained("steps that go the other way cost as much as rounding")

    def check_standard(self, quantized: nn.Module, standard: nn.Module) -> None:
        """Raise if the model in standard operators gives something else."""
        for number, batch in enumerate(self.subject.batches):
            expected, found = self.call(quantized, batch), self.call(standard, batch)
            if not is_equal(expected, found):
                differences = find_differences(expected, found)
                what = str(differences[0]) if differences else "it differs in the last bits"
                raise Broken(f"batch {number}: {what}")

    def check_file(self, model: nn.Module) -> None:
        """Raise if a model comes back from a file as another."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.fxq")
            fxquant.save(model, path)
            loaded = fxquant.load(path, custom=self.subject.custom)
        if fxquant.text(loaded) != fxquant.text(model):
            raise Broken("it prints otherwise")
        for number, batch in enumerate(self.subject.batches):
            expected, found = self.call(model, batch), self.call(loaded, batch)
            if not is_equal(expected, found):
                raise Broken(f"batch {number}: the outputs differ")

    def run_passes(self) -> None:
        """Run each pass alone."""
        model = copy.deepcopy(self.model).eval()

        def observe(gm: nn.Module) -> None:
            with torch.no_grad():
                for batch in self.subject.batches:
                    gm(**cloned(batch))

        with self.of("trace"):
            gm = fxquant.trace(model, example_inputs=cloned(self.subject.batches[0]))
        if not self.held():
            return
        batches = [tuple(each.values()) for each in self.subject.batches]
        with self.of("passes"):
            for each, graph in passes_in_order(gm, batches, self.subject.recipe, observe):
                _check_pass(each, graph)


def _check_pass(each: Pass, gm: fx.GraphModule) -> None:
    """Raise if a pass changes what is not its own, or finds something in a second run."""
    name, other = type(each).__name__, sibling(gm)
    before, codes = held_by(other), (other.code, gm.code)
    modified = each(gm).modified
    _require_same(before, other, f"{name}: another graph over the modules")
    assert other.code == codes[0], f"{name}: another graph over the modules changed"
    assert modified or gm.code == codes[1], f"{name}: it changed the graph, and says it did not"
    assert name in AGAIN or not each(gm).modified, f"{name}: a second run finds something"


def agreement(expected: Any, found: Any) -> float:
    """Return the SQNR in dB of the floating-point output that agrees least.

    Raises:
        Broken: the shapes differ, or something is not finite.
    """
    pairs = list(zip(_floats(expected), _floats(found), strict=True))
    for one, other in pairs:
        if one.shape != other.shape or one.dtype != other.dtype:
            raise Broken(f"{other.dtype} {tuple(other.shape)}, not {one.dtype} {tuple(one.shape)}")
        if not bool(torch.isfinite(other).all()):
            raise Broken("an output is not finite")
    return min((sqnr(*pair) for pair in pairs), default=math.inf)


def _floats(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(each: Any) -> None:
        if isinstance(each, Tensor) and each.is_floating_point() and each.numel() > 0:
            found.append(each)

    map_leaves(value, note)
    return found


def _pads_most(model: nn.Module) -> bool:
    """Say whether a convolution puts as much around its input along an axis as there is."""
    graphs = [each for each in model.modules() if isinstance(each, fx.GraphModule)]
    calls = [(module_of(gm, node), record(node)) for gm in graphs for node in gm.graph.nodes]
    for module, known in calls:
        shape, padding = known.input_shape, getattr(module, "padding", ())
        if shape is None or not isinstance(padding, tuple):
            continue
        sizes = shape[len(shape) - len(padding) :]
        if any(2 * one >= size for one, size in zip(padding, sizes, strict=True)):
            return True
    return False


def _nudged(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.clone()
    signs = 1 - 2 * (torch.arange(value.numel()) % 2).reshape(value.shape)
    return value * (1 + 8 * torch.finfo(value.dtype).eps * signs).to(value.dtype)


def _require_same(before: dict[str, Any], model: nn.Module, what: str) -> None:
    changes = find_changes(before, held_by(model))
    if changes is not None:
        raise Broken(f"{what} has {changes}")


@contextlib.contextmanager
def _changes() -> Iterator[set[str]]:
    """Yield the names of the passes that changed a graph meanwhile."""
    changed: set[str] = set()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            name, _, what = record.getMessage().partition(": ")
            if what == "changed":
                changed.add(name)

    handler = Handler(logging.INFO)
    _logger.addHandler(handler)
    _logger.setLevel(logging.INFO)
    try:
        yield changed
    finally:
        _logger.removeHandler(handler)
        _logger.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let fxquant log nothing: what it refuses is found anyway."""
    level, propagates = _logger.level, _logger.propagate
    _logger.setLevel(logging.CRITICAL)
    _logger.propagate = False
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _logger.setLevel(level)
        _logger.propagate = propagates


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]
