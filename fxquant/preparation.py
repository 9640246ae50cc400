"""From the caller's model to one with observers: capture, its proof, and the passes of `prepare`.

    prepared_copy(model, Recipe.aciq(), capture, call=None)
    prepare_anew(prepared, call_of, error)

The second is for a model whose first call shows that tracing took something for granted wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from torch import fx, nn

from fxquant.calibration.counted_call import count_first_call, counted_first_call
from fxquant.calibration.first_calls import FirstCalls, compare_first_calls, uncompared_source
from fxquant.calibration.input_keeper import keep_inputs
from fxquant.calibration.proof import prove, reference_of
from fxquant.calling.examples import Example, check_folding, run_examples
from fxquant.capture.example import Call
from fxquant.capture.naming import find_regions
from fxquant.capture.partition import Captured
from fxquant.errors import CaptureError
from fxquant.given_passes import Passes, run_in_front
from fxquant.graph.journal import write_journals
from fxquant.graph.operations import is_layer
from fxquant.graph.records import tell_refusals
from fxquant.graph.selection import check_rules, select_calls
from fxquant.graph.states import require_prepared
from fxquant.modules.copies import copy_module
from fxquant.passes.float_passes import float_passes
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.insert_observers import InsertObservers
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import CallSpec

_logger = logging.getLogger("fxquant")


def prepared_copy(
    model: nn.Module,
    recipe: Recipe,
    capture_with: Callable[..., Captured],
    call: Call | None,
    *,
    verify: bool,
    passes: Passes = (),
) -> nn.Module:
    """Return what `fxquant.prepare` returns.

    Args:
        model: left as it is.
        recipe: what observers are for.
        capture_with: `fxquant.capture.partition.capture`, with the caller's options.
        call: what the model is called with in an example, if there is one.
        verify: whether to compare with `model`, now and on the first calls.
        passes: the caller's own, in front of all others.

    Raises:
        CaptureError, PassError, RecipeError: as `fxquant.prepare`.
    """
    capture_again = partial(capture_with, call=call)
    captured = capture_again(model)
    if verify and call is not None:
        reference = reference_of(model, captured.model)
        captured = prove(reference, captured, call, lambda left: capture_again(model, left=left))
    first_calls = FirstCalls(
        reference_of(model, captured.model), partial(capture_again, left=captured.left), passes
    )
    # The reference has the captured model's tensors: what a caller's pass writes to is no others'.
    prepared = copy_module(captured.model) if passes else captured.model
    graphs = find_regions(prepared).values()
    write_journals(prepared, recipe, captured.untraced)
    examples: list[Example] = []
    if passes:
        before = [] if call is None else run_examples(prepared, call)
        run_in_front(passes, graphs, before)
    if call is not None:
        with counted_first_call(prepared):
            examples = run_examples(prepared, call)
    for gm in graphs:
        Pipeline(*float_passes(recipe))(gm)
    check_folding(examples)
    check_rules(graphs, recipe)
    calls = [(gm, *each) for gm in graphs for each in select_calls(gm, recipe).items()]
    if not any(is_layer(gm, node) and call != CallSpec(None, None) for gm, node, call in calls):
        raise CaptureError(
            f"{type(model).__name__} has nothing to quantize: {len(calls)} convolution, linear and "
            "addition calls were found, and no layer among them is left to quantize"
        )
    for gm in graphs:
        InsertObservers(recipe)(gm)
    if recipe.needs_data:
        keep_inputs(prepared, recipe.data.samples)
    if verify:
        compare_first_calls(prepared, first_calls, call)
    count_first_call(prepared)
    write_journals(prepared, recipe)
    tell_refusals("prepare", graphs)
    return prepared


def prepare_anew(
    prepared: nn.Module, call_of: Callable[[nn.Module], Call | None], error: CaptureError
) -> None:
    """Make of a model whose first call fails one that was prepared with that call; in place.

    Args:
        prepared: has observed nothing yet.
        call_of: returns what the caller's model is called with.
        error: what the prepared one raised. It is raised again if that one had an example, was
            called before, or is not compared with the caller's model any more.
    """
    source = uncompared_source(prepared)
    if source is None:
        raise error
    reference, capture_again, passes = source
    call = call_of(reference)
    if call is None:
        raise error
    _logger.info("captured again, with the first batch as an example: %s", error)
    recipe = require_prepared(prepared, "calibrate")
    anew = prepared_copy(reference, recipe, capture_again, call, verify=True, passes=passes)
    prepared.__class__ = type(anew)
    vars(prepared).clear()
    vars(prepared).update(vars(anew))
    if isinstance(prepared, fx.GraphModule):
        prepared.graph.owning_module = prepared
