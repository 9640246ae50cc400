"""From a calibrated model to a fake-quantized one: the passes behind `fxquant.convert`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import fx, nn

from fxquant.calibration.counted_call import stop_counting
from fxquant.calibration.first_calls import stop_comparing
from fxquant.calibration.input_keeper import stop_keeping_inputs
from fxquant.calibration.observed import check_calibrated, combine_observers, was_called
from fxquant.calibration.region_calls import are_aligned, record_calls, regions_in_order
from fxquant.capture.naming import Untraced, find_regions
from fxquant.capture.region import Region
from fxquant.errors import CalibrationError
from fxquant.given_passes import Passes, run_behind
from fxquant.graph.journal import read_untraced, write_journals
from fxquant.graph.records import refusals_of, tell_refusals
from fxquant.mixed_precision.resolve import set_bits, with_bits
from fxquant.modules.copies import copy_module
from fxquant.passes.convert.choose_ranges import ChooseRanges
from fxquant.passes.convert.correct_bias import CorrectBias
from fxquant.passes.convert.correct_weights import CorrectWeights
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.convert.keep_floats import KeepFloats
from fxquant.passes.convert.quantize_weights import QuantizeWeights
from fxquant.passes.convert.reconstruct_blocks import ReconstructBlocks
from fxquant.passes.convert.reconstruct_rounding import ReconstructRounding
from fxquant.passes.convert.smooth_inputs import SmoothInputs
from fxquant.passes.convert.tune_batchnorm import TuneBatchNorm
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.passes.prepare.mark_fused_relu import MarkFusedRelu
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.streaming.distributed import gather_objects, num_ranks
from fxquant.streaming.long_runs import Run
from fxquant.streaming.running import Arguments
from fxquant.streaming.value_store import ValueStore

_NEVER = "never called in calibration"
_START = "_start"  # no module's name: a folder of the checkpoint
_Calls = Sequence[Arguments]


def steps(recipe: Recipe, passes: Passes = ()) -> list[Step]:
    """Return what makes a quantized model of a calibrated one, in order; bits are settled before.

    Passes of the caller's own see the graph that `fxquant.prepare` returned, with what its
    observers saw; the float copy, and all that looks back at it, is what they made.

    >>> for step in steps(Recipe.adaround(batchnorm_tuning=True)):
    ...     print(step)
    FoldBatchNorm → AbsorbBatchNorm
    a float copy
    KeepFloats → ChooseRanges → MarkFusedRelu → QuantizeWeights
    ReconstructRounding on calls of both
    TuneBatchNorm on calls of both
    >>> def my_function(gm: fx.GraphModule) -> None: ...
    >>> print(steps(Recipe.minmax(), Pipeline(my_function).passes)[0])
    my_function, checked
    """
    start = recipe.data.start if num_ranks() == 1 else None  # several are refused: at once
    learn = ReconstructBlocks if recipe.data.blocks else ReconstructRounding
    correct = CorrectWeights if recipe.bias_correction == "weights" else CorrectBias
    table: list[tuple[object, Step]] = [
        (passes, GivenPasses(passes, recipe)),
        # Calibration told the ranks that were unknown before.
        (True, OnEachGraph(Pipeline(FoldBatchNorm(), AbsorbBatchNorm()))),
        (recipe.smoothing, OnOwnCalls(recipe)),
        (recipe.needs_data or recipe.bias_correction, CopyFloat()),
        (
            True,
            OnEachGraph(
                Pipeline(KeepFloats(), ChooseRanges(), MarkFusedRelu(), QuantizeWeights(recipe))
            ),
        ),
        (start, OnCalls(ReconstructRounding, start or recipe.data, _START)),
        (recipe.reconstruction, OnCalls(learn, recipe.data)),
        (recipe.bias_correction, AgainstFloat(correct)),
        (recipe.batchnorm_tuning, OnCalls(TuneBatchNorm, recipe.data)),
    ]
    return [step for is_wanted, step in table if is_wanted]


def converted(
    prepared: nn.Module, recipe: Recipe, inputs: _Calls, run: Run, passes: Passes = ()
) -> nn.Module:
    """Return what `fxquant.convert` does; `inputs` are the data, if the recipe needs any."""
    is_mixed = recipe.budget is not None
    if is_mixed:
        if passes:  # bits are measured of what they make
            prepared, passes = _behind(passes, prepared, recipe), ()
        quick = partial(converted, prepared, run=Run(progress=False))
        recipe = with_bits(prepared, recipe, inputs, quick, run.progress)
    model = copy_module(prepared)
    stop_keeping_inputs(model)
    stop_comparing(model)
    stop_counting(model)
    combine_observers(model)
    if is_mixed:
        set_bits(model, recipe)
    graphs = find_regions(model)
    uncalled = _uncalled(model)
    if len(uncalled) == len(graphs) and uncalled[0].reason != _NEVER:
        raise CalibrationError(f"convert: {uncalled[0].path!r}: {uncalled[0].reason}")
    check_calibrated(model)
    for left in uncalled:
        DropObservers()(graphs.pop(left.path))
    draft = Draft(model, graphs, inputs, run)
    for step in steps(recipe, passes):
        step(draft)
    write_journals(model, recipe, (*read_untraced(model), *uncalled, *_release_parts(model)))
    known = refusals_of(find_regions(prepared).values())
    tell_refusals("convert", find_regions(model).values(), known)
    return model


def smoothed(prepared: nn.Module, recipe: Recipe, inputs: _Calls, run: Run) -> nn.Module:
    """Return a copy of a calibrated model with inputs smoothed, still to be converted."""
    model = copy_module(prepared)
    draft = Draft(model, find_regions(model), inputs, run)
    for step in (OnEachGraph(Pipeline(FoldBatchNorm(), AbsorbBatchNorm())), OnOwnCalls(recipe)):
        step(draft)
    return model


def _behind(passes: Passes, prepared: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a copy of a calibrated model whose graphs went through passes of the caller's own."""
    copied = copy_module(prepared)
    combine_observers(copied)
    run_behind(passes, [gm for gm in find_regions(copied).values() if _is_called(gm)], recipe)
    return copied


@dataclass
class Draft:
    """A model on its way, and what its steps may need."""

    model: nn.Module
    graphs: dict[str, fx.GraphModule]
    """Those of it that are quantized, by path: where calibration never came, it stays in float."""
    inputs: _Calls
    """What the model is called with."""
    run: Run
    reference: nn.Module | None = None
    """The float model, from `CopyFloat` on."""

    def floats(self) -> dict[str, fx.GraphModule]:
        """Return the graphs of the float model by path."""
        assert self.reference is not None
        return find_regions(self.reference)


Step = Callable[[Draft], None]


@dataclass(frozen=True)
class OnEachGraph:
    """Passes that need nothing but a graph."""

    passes: Pipeline

    def __call__(self, draft: Draft) -> None:
        """Run them on one graph after the other."""
        for gm in draft.graphs.values():
            self.passes(gm)

    def __str__(self) -> str:
        return str(self.passes)


@dataclass(frozen=True)
class GivenPasses:
    """Passes of the caller's own, on graphs with observers that have seen the data."""

    passes: Passes
    recipe: Recipe

    def __call__(self, draft: Draft) -> None:
        """Run each on one graph after the other, and check what came of it."""
        run_behind(self.passes, draft.graphs.values(), self.recipe)

    def __str__(self) -> str:
        return f"{Pipeline(*self.passes)}, checked"


class CopyFloat:
    """Keep the model as it is now, without observers, for the steps that look back at it."""

    def __call__(self, draft: Draft) -> None:
        """Copy the model."""
        draft.reference = Pipeline(DropObservers()).on_copy_of(draft.model)

    def __str__(self) -> str:
        return "a float copy"


@dataclass(frozen=True)
class AgainstFloat:
    """A pass that needs the float graph."""

    make: type[CorrectBias | CorrectWeights]

    def __call__(self, draft: Draft) -> None:
        """Run it on one graph after the other."""
        floats = draft.floats()
        for path, gm in draft.graphs.items():
            self.make(floats[path])(gm)

    def __str__(self) -> str:
        return f"{self.make.__name__} against the float copy"


@dataclass(frozen=True)
class OnOwnCalls:
    """Inputs smoothed, by what each graph computes of what it is called with."""

    recipe: Recipe

    def __call__(self, draft: Draft) -> None:
        """Run the pass on one graph after the other; each leaves outputs as they are."""
        for path, gm in regions_in_order(draft.model, draft.inputs).items():
            if path not in draft.graphs:
                continue
            if not isinstance(gm, Region):
                SmoothInputs(self.recipe, draft.inputs, draft.run)(gm)
                continue
            with ValueStore(self.recipe.data.max_bytes) as store:
                calls = record_calls(draft.model, gm, draft.inputs, store)
                if len(calls):
                    SmoothInputs(self.recipe, calls, draft.run)(gm)

    def __str__(self) -> str:
        return "SmoothInputs on calls"


@dataclass(frozen=True)
class OnCalls:
    """A pass that learns from what a graph and the float one are called with."""

    make: type[ReconstructBlocks | ReconstructRounding | TuneBatchNorm]
    options: Reconstruction
    folder: str = ""
    """Inside of the checkpoint."""

    def __call__(self, draft: Draft) -> None:
        """Run it on one graph after the other, in the order in which the model calls them.

        Of a model that is not one graph, both it and its float copy run once for each region.
        """
        floats = draft.floats()
        for path, gm in regions_in_order(draft.model, draft.inputs).items():
            if path in draft.graphs:
                self._learn(draft, path, gm, floats[path])

    def _learn(
        self, draft: Draft, path: str, gm: fx.GraphModule, reference: fx.GraphModule
    ) -> None:
        how = draft.run.inside(path).inside(self.folder)
        if not isinstance(gm, Region) or not isinstance(reference, Region):
            self.make(reference, draft.inputs, self.options, how)(gm)
            return
        assert draft.reference is not None
        with ValueStore(self.options.max_bytes) as store:
            calls = record_calls(draft.model, gm, draft.inputs, store)
            if not any(gather_objects(len(calls), f"the number of calls of {path}")):
                return
            if len(calls) == 0:
                raise CalibrationError(
                    f"{path}: never called with this rank's share of the data, but on others: "
                    "shuffle the data, or give each rank more of it"
                )
            floats = record_calls(draft.reference, reference, draft.inputs, store)
            if not are_aligned(calls, floats):
                floats = calls
            self.make(reference, calls, self.options, how, floats)(gm)

    def __str__(self) -> str:
        return f"{self.make.__name__} on calls of both"


def _is_called(gm: fx.GraphModule) -> bool:
    return not isinstance(gm, Region) or was_called(gm)


def _uncalled(model: nn.Module) -> list[Untraced]:
    """Return the regions that calibration never ran through, which stay in float, to report."""
    uncalled = []
    for path, gm in find_regions(model).items():
        if isinstance(gm, Region) and not _is_called(gm):
            parts = ", ".join(f"{path}.{name}" for name in gm.calls.parts)
            reason = f"never called as a whole, only {parts}: name these with regions=[…]"
            uncalled.append(Untraced(path, type(gm).__name__, reason if parts else _NEVER))
    return uncalled


def _release_parts(model: nn.Module) -> list[Untraced]:
    """Drop what of the regions nobody calls by itself; return what stays, to report."""
    return [
        Untraced(f"{path}.{name}", kind, "called from Python by itself: a float copy of it stays")
        for path, gm in find_regions(model).items()
        if isinstance(gm, Region)
        for name, kind in gm.release_parts().items()
    ]
