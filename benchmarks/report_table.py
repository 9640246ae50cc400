"""Make the report's table: a model in float, quantized by ACIQ, and by AdaRound, with all figures.

    python -m benchmarks.report_table
    python -m benchmarks.report_table --model resnet50 --data imagenet
    python -m benchmarks.report_table --model retinanet_resnet50_fpn --data coco
    python -m benchmarks.report_table --model deeplabv3_resnet50 --data VOCdevkit

The first line needs no download: it draws three small data sets, trains a small classifier,
detector and segmenter on them, and keeps all in benchmarks/.cache. `--model` is any classifier,
detector or segmenter of torchvision, `--data` an ImageNet, COCO or VOC folder as it is distributed;
`--weights` is a file (.safetensors or .pth), without it torchvision's weights are loaded. As in the
report, the images to calibrate on are drawn from the validation images, without their labels.

"matched" is how many of the float model's detections (score > 0.3) the quantized model makes too:
of the same class, with IoU > 0.9. "seconds" is what evaluation took, reading the images included.

Every finished row is written to benchmarks/results/report_table.json at once, and read back from
there by the next run. Rows of other weights, data or options are rows of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import fxquant
from benchmarks.judging.report_rows import Row, Rows, table
from benchmarks.judging.report_subjects import (
    FLOAT,
    SMALL_KINDS,
    Measurement,
    Settings,
    Subject,
    small_subject,
    torchvision_subject,
)
from benchmarks.judging.tasks import TASKS
from benchmarks.running.allocator import keep_memory

HERE = Path(__file__).parent
METHODS: dict[str, Callable[[Settings], fxquant.Recipe]] = {
    "ACIQ": lambda settings: fxquant.Recipe.aciq(**settings.bits),
    "ACIQ, every batch": lambda settings: fxquant.Recipe.aciq(
        activation_dynamic=True, **settings.bits
    ),
    "AdaRound": lambda settings: fxquant.Recipe.adaround(
        samples=min(settings.samples, settings.calibration), blocks=False, **settings.bits
    ),
}
DEFAULT_METHODS = tuple(METHODS)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked against each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", help=f"of torchvision, or {', '.join(SMALL_KINDS)}")
    parser.add_argument("--data", type=Path, help="an ImageNet, COCO or VOC folder")
    parser.add_argument("--weights", type=Path, help="a .safetensors or .pth file")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS)
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--calibration", type=int, help="number of images; default: the report's")
    parser.add_argument("--samples", type=int, help="of them, for AdaRound; default: the report's")
    parser.add_argument(
        "--images", type=int, help="evaluate on so many only, drawn by a fixed seed"
    )
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is in the file")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "report_table.json")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    options = parser.parse_args(arguments)
    is_small = options.model is None or options.model in SMALL_KINDS
    if is_small and (options.data or options.weights):
        raise SystemExit("--data and --weights go with a --model of torchvision")
    if not is_small and options.data is None:
        raise SystemExit(
            f"{options.model}: give --data FOLDER; data is drawn for {', '.join(SMALL_KINDS)} only"
        )
    for name in ("calibration", "samples", "images", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    return options


def find_subjects(options: argparse.Namespace) -> Iterator[Subject]:
    """Yield the models to measure, one when the one before is done."""
    if options.model is None or options.model in SMALL_KINDS:
        for name in SMALL_KINDS if options.model is None else [options.model]:
            yield small_subject(name, options.cache)
    else:
        yield torchvision_subject(options.model, options.data, options.weights)


def find_settings(subject: Subject, options: argparse.Namespace) -> Settings:
    """Return the options, the report's numbers where none are given."""
    task = TASKS[subject.kind]
    return Settings(
        images=options.images,
        calibration=options.calibration or task.calibration,
        samples=options.samples or task.samples,
        weight_bits=options.weight_bits,
        activation_bits=options.activation_bits,
        batch_size=options.batch_size or subject.batch_size,
        device=options.device,
        workers=options.workers,
    )


def measure(options: argparse.Namespace, rows: Rows) -> Iterator[Row]:
    """Yield the rows of all models, each when it is finished."""
    for subject in find_subjects(options):
        settings = find_settings(subject, options)
        try:
            recipes = {name: METHODS[name](settings) for name in options.methods}
        except fxquant.RecipeError as error:
            raise SystemExit(str(error)) from error
        measurement = Measurement(subject, settings, rows, options.fresh)
        yield measurement.row(FLOAT, None)
        for method, recipe in recipes.items():
            yield measurement.row(method, recipe)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = read_options(arguments)
    rows, finished = Rows(options.results), []
    try:
        for row in measure(options, rows):
            finished.append(row)
    except KeyboardInterrupt:
        if finished:
            print(table(finished))
        raise SystemExit(
            f"\ninterrupted; finished rows are kept in {options.results}, and the same command "
            "goes on"
        ) from None
    print(table(finished))
    bits = f"{options.weight_bits}/{options.activation_bits}"
    print(f"\nAll but the seconds in percent; bits W/A {bits}; rows kept in {options.results}")


if __name__ == "__main__":
    keep_memory()
    main()
