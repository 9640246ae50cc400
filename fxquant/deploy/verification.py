"""Whether an ONNX file computes what the simulation does: both run on the same calls.

onnxruntime runs the file with its optimizations off, that is, as the file says, in floating point.
What remains is the order of float32 operations: values half-way between two integers may go either
way, and behind many layers such steps add up. Where outputs differ by more than that, the
simulation runs again, with a noise of 80 dB on the inputs and on what its graphs return: a model
that then differs from itself, since it picks the best of near-equal boxes, tells nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.capture.naming import find_regions
from fxquant.deploy.call_names import (
    FreeAxes,
    named_inputs,
    named_outputs,
    of_other_batches,
    of_other_sizes,
)
from fxquant.deploy.exported_program import first_line_of
from fxquant.deploy.quiet import quiet_exporter
from fxquant.errors import LoweringError
from fxquant.numerics.containers import cloned, map_leaves
from fxquant.numerics.decibels import sqnr

_logger = logging.getLogger("fxquant")
_NOISE = 1e-4
_LEAST_SIZE = 0.01  # the scores of an untrained detector may be equal to the last bit: 1/91
_MIN_SQNR = 30.0  # dB; 60 and more but for values half-way between two integers

Arguments = tuple[Any, ...]


def verify_file(
    path: Path, simulation: nn.Module, arguments: Arguments, axes: FreeAxes
) -> frozenset[str]:
    """Compare a file with the model that it was made from; return the images of any size in it.

    Nothing is compared where onnxruntime is not installed, or does not know what is in the file.

    Args:
        path: of the file.
        simulation: the model, in eval mode; left as it is.
        arguments: the example.
        axes: whose freedom is to be proven, with calls of other lengths.

    Raises:
        LoweringError: they differ, on the example or on a batch of another length.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        level = logging.WARNING if axes.names() else logging.INFO
        _logger.log(level, "export_onnx: not verified: onnxruntime is not installed")
        return frozenset()
    try:
        verifier = _Verifier(path, simulation)
    except Exception as error:  # onnxruntime's own, which have no class in common
        _logger.warning("export_onnx: not verified: onnxruntime cannot load the file: %s", error)
        return frozenset()
    reason = verifier.why_different(arguments)
    if reason is not None:
        raise LoweringError(
            f"export_onnx: the file does not compute what the model does: {reason}: please report "
            "the model; verify=False writes the file all the same"
        )
    for call in of_other_batches(simulation, arguments, axes):
        reason = verifier.why_different(call)
        if reason is not None:
            raise LoweringError(
                f"export_onnx: with a batch of another length {reason}; dynamic_batch=False fixes "
                "the length of the batch"
            )
    reasons = [verifier.why_different(call) for call in of_other_sizes(simulation, arguments, axes)]
    for reason in filter(None, reasons):
        _logger.info("export_onnx: the sizes of images are fixed: with others %s", reason)
    return frozenset() if any(reasons) else axes.sizes


class _Verifier:
    def __init__(self, path: Path, simulation: nn.Module) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._simulation = simulation

    def why_different(self, arguments: Arguments) -> str | None:
        """Return in words what differs in a call; None if nothing does, or nothing can be told."""
        try:
            expected = self._simulate(arguments)
        except Exception as error:  # the model's own code, which may raise anything
            return f"the model fails: {first_line_of(error)}"
        try:
            actual = self._run(arguments)
        except Exception as error:
            return f"onnxruntime fails: {first_line_of(error)}"
        difference = _difference(expected, actual)
        if difference is None:
            return None
        own_difference = _difference(expected, self._simulate_with_noise(arguments))
        if own_difference is None:
            return difference
        if _difference(expected, _reordered(expected, actual)) is None:
            return None
        _logger.warning(
            "export_onnx: %s; but of the model itself, under a noise of 80 dB, %s: whether the "
            "file computes the same cannot be told",
            difference,
            own_difference,
        )
        return None

    def _simulate(self, arguments: Arguments) -> dict[str, Tensor]:
        with torch.no_grad(), quiet_exporter():  # fx prints the line that fails
            return named_outputs(self._simulation, self._simulation(*cloned(arguments)))

    def _simulate_with_noise(self, arguments: Arguments) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def noisy(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            noise = torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.5
            size = value.abs().mean().clamp(min=_LEAST_SIZE)
            return value + _NOISE * (value.abs() + size) * noise

        with contextlib.ExitStack() as stack:
            for gm in find_regions(self._simulation).values():
                hook = gm.register_forward_hook(lambda _, __, output: map_leaves(output, noisy))
                stack.callback(hook.remove)
            return self._simulate(map_leaves(arguments, noisy))

    def _run(self, arguments: Arguments) -> dict[str, Tensor]:
        given = named_inputs(self._simulation, arguments)
        feeds = {each.name: given[each.name].numpy() for each in self._session.get_inputs()}
        names = [each.name for each in self._session.get_outputs()]
        results = self._session.run(names, feeds)
        return {name: torch.from_numpy(each) for name, each in zip(names, results, strict=True)}


def _difference(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> str | None:
    """Return which output differs most, and how; None if all agree."""
    agreements = {name: _agreement(expected[name], actual[name]) for name in expected}
    name = min(agreements, key=lambda each: agreements[each], default="")
    if agreements.get(name, math.inf) >= _MIN_SQNR:
        return None
    if expected[name].shape != actual[name].shape:
        shapes = f"{tuple(actual[name].shape)} in the place of {tuple(expected[name].shape)}"
        return f"output {name!r} has the shape {shapes}"
    return f"output {name!r} differs: it agrees to {agreements[name]:.1f} dB"


def _reordered(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `actual` with its rows, as detections, in the order of those that they are like.

    A row goes through all outputs of one container that are as long: "boxes", "labels", "scores".
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, tensor in expected.items():
        if tensor.shape == actual[name].shape and tensor.numel() > 0 and tensor.dim() > 0:
            groups.setdefault((name.rpartition("_")[0], len(tensor)), []).append(name)
    found = dict(actual)
    for (_, length), names in groups.items():
        scales = {name: expected[name].double().abs().mean().clamp(min=1e-30) for name in names}
        mine, theirs = (
            torch.cat([(each[name] / scales[name]).reshape(length, -1) for name in names], 1)
            for each in (expected, actual)
        )
        nearest = torch.cdist(mine, theirs).argmin(1)
        if len(set(nearest.tolist())) == length:
            found |= {name: actual[name][nearest] for name in names}
    return found


def _agreement(expected: Tensor, actual: Tensor) -> float:
    """Return how well two outputs agree, in dB."""
    if expected.shape != actual.shape:
        return -math.inf
    if torch.equal(expected, actual):  # infinities, and what is empty
        return math.inf
    agreement = sqnr(expected.to(torch.float64), actual.to(torch.float64))
    return -math.inf if math.isnan(agreement) else agreement
