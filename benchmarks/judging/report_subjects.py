"""A model with the data it is measured on, and how one of its rows is made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import fxquant
from benchmarks.data.datasets import Data, fingerprint
from benchmarks.data.drawn_shapes import SHAPES
from benchmarks.data.pretrained import Kind, default_weights, kind_of, load_model, preprocess_of
from benchmarks.judging.report_rows import Row, Rows
from benchmarks.judging.tasks import TASKS, Answers, Batches, Figures, Inputs, sure_detections
from benchmarks.networks.small_models import data_folder, load_small, weights_file
from benchmarks.networks.small_training import prepare_picture

FLOAT = "float"
SMALL_KINDS: dict[str, Kind] = {
    "small_resnet": "classifier",
    "small_retinanet": "detector",
    "small_deeplabv3": "segmenter",
}
_SMALL_BATCH = 8  # the small pictures are of two sizes: padding is no matter


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a row depends on besides the model, its data and the method."""

    images: int | None
    """To evaluate on; None: all."""
    calibration: int
    samples: int
    """Of the calibration images, to learn roundings from."""
    weight_bits: int
    activation_bits: int
    batch_size: int
    device: str
    workers: int

    @property
    def bits(self) -> dict[str, Any]:
        """Return the bits as recipes take them."""
        return {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}


@dataclass(frozen=True)
class Subject:
    """A model, its kind, and where its weights and data are; nothing is loaded yet."""

    name: str
    kind: Kind
    weights: str
    """Which ones, in a word."""
    folder: Path
    num_classes: int
    load: Callable[[], nn.Module]
    preprocess: Callable[[Image.Image], Tensor]
    batch_size: int


def small_subject(name: str, cache: Path) -> Subject:
    """Return a small model with its drawn pictures, both made now if they are not in the cache."""
    folder = data_folder(name, cache)
    load_small(name, cache)
    return Subject(
        name,
        SMALL_KINDS[name],
        f"{weights_file(name, cache).name} {_hash(weights_file(name, cache))}",
        folder,
        len(SHAPES),
        partial(load_small, name, cache),
        partial(prepare_picture, name),
        _SMALL_BATCH,
    )


def torchvision_subject(name: str, folder: Path, weights: Path | None) -> Subject:
    """Return a model of torchvision with a folder of data."""
    kind = kind_of(name)
    if weights is not None and not weights.is_file():
        raise SystemExit(f"{weights}: there is no such file")
    which = f"{weights.name} {_hash(weights)}" if weights else str(default_weights(name))
    preprocess = preprocess_of(name)
    load = partial(load_model, name, weights)
    return Subject(name, kind, which, folder, 1000, load, preprocess, TASKS[kind].batch_size)


class Measurement:
    """The rows of one subject; the model and the float model's answers are loaded when needed."""

    def __init__(self, subject: Subject, settings: Settings, rows: Rows, fresh: bool) -> None:
        self.subject, self.settings, self._rows, self._fresh = subject, settings, rows, fresh
        self._task = TASKS[subject.kind]
        self._data: Data = self._task.open(subject.folder, subject.num_classes)
        order = torch.randperm(len(self._data), generator=torch.Generator().manual_seed(0))
        self._calibration = order[: settings.calibration].tolist()
        self._evaluated = sorted(order[: settings.images].tolist())
        self._data_name = f"{subject.folder.resolve()} {fingerprint(self._data)}"

    def row(self, method: str, recipe: fxquant.Recipe | None) -> Row:
        """Return the row of a method, from the file if it is there; no recipe: the float model."""
        key = self._key(method, recipe)
        found = None if self._fresh else self._rows.find(key)
        if found is not None:
            return found
        start = time.perf_counter()
        model = self._model if recipe is None else self._quantize(method, recipe)
        quantize_seconds = None if recipe is None else time.perf_counter() - start
        start = time.perf_counter()
        figures, answers = self._evaluate(model, method)
        seconds = time.perf_counter() - start
        if self._task.agreement is not None:
            if recipe is None:
                self._keep_answers(answers)
            figures |= self._task.agreement(self._float_answers, answers)
        row: Row = {
            **key,
            "figures": figures,
            "seconds": seconds,
            "quantize_seconds": quantize_seconds,
            "made": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, torch {torch.__version__}",
        }
        self._rows.add(row)
        return row

    def _key(self, method: str, recipe: fxquant.Recipe | None) -> Row:
        settings = self.settings
        options: dict[str, Any] = {
            "images": len(self._evaluated),
            "batch_size": settings.batch_size,
            "device": settings.device,
        }
        if recipe is not None:
            options["calibration"] = len(self._calibration)
            options["recipe"] = str(asdict(recipe))  # its repr leaves out defaults
            options["fxquant"] = fxquant.__version__
        subject = self.subject
        return {
            "model": subject.name,
            "weights": subject.weights,
            "data": self._data_name,
            "method": method,
            "options": options,
        }

    def _quantize(self, method: str, recipe: fxquant.Recipe) -> nn.Module:
        prepared = fxquant.prepare(self._model, recipe)
        batches = self._batches(self._calibration, f"{method}, calibration")
        fxquant.calibrate(prepared, batches, progress=False)  # `batches` show their own bar
        return fxquant.convert(prepared)

    def _evaluate(self, model: nn.Module, method: str) -> tuple[Figures, Answers]:
        batches = self._batches(self._evaluated, f"{method}, evaluation")
        with torch.inference_mode():
            return self._task.evaluate(model, batches, self._data)

    def _batches(self, chosen: list[int], title: str) -> Batches:
        return Batches(
            Inputs(self._data, chosen, self.subject.preprocess),
            f"{self.subject.name}: {title}",
            self.subject.kind == "detector",
            self.settings.batch_size,
            self.settings.workers,
            self.settings.device,
        )

    @cached_property
    def _model(self) -> nn.Module:
        return self.subject.load().to(self.settings.device)

    @cached_property
    def _float_answers(self) -> Answers:
        """What the float model answered: kept beside the rows, else found out again."""
        if not self._answers_file.exists():
            self._keep_answers(self._evaluate(self._model, f"{FLOAT}, again")[1])
        kept: Answers = torch.load(self._answers_file, weights_only=True)
        return kept

    def _keep_answers(self, answers: Answers) -> None:
        kept = [sure_detections(each) if isinstance(each, dict) else each for each in answers]
        self._answers_file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._answers_file.with_suffix(".unfinished")
        torch.save(kept, unfinished)
        unfinished.replace(self._answers_file)
        self.__dict__.pop("_float_answers", None)

    @property
    def _answers_file(self) -> Path:
        key = json.dumps(self._key(FLOAT, None), sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        rows = self._rows.path
        return rows.parent / f"{rows.stem}_answers" / f"{self.subject.name}_{digest}.pt"


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:12]
