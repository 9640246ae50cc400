"""Recipes drawn at random, by hypothesis: whatever a caller can make."""

from typing import Any

from hypothesis import strategies as st
from torch import nn

from fxquant import TARGETS, Budget, Recipe, RecipeError, Reconstruction, Rule, Target, TensorSpec

MATCHES = st.one_of(
    st.sampled_from(["fc", "layer4.*", "*.conv?", "blocks[[]0]", "é\n'\"\\"]),
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.sampled_from([nn.Linear, nn.Conv2d, nn.modules.conv._ConvNd, nn.Module]),
)
RANGES = ("minmax", "ema", "percentile", "mse", "aciq", "bn", "cross_entropy")
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
NUMBERS = st.floats(1e-9, 1e9) | st.integers(1, 10**9)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return some of the fields: the others keep their defaults."""
    return st.fixed_dictionaries({}, optional=fields)


def made(kind: Any, options: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what `kind` makes of options, of those that fit together."""

    def make(given: dict[str, Any]) -> Any:
        try:
            return kind(**given)
        except RecipeError:
            return None

    return options.map(make).filter(lambda each: each is not None)


def specs(bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 16)) -> st.SearchStrategy[TensorSpec]:
    fields = some(
        bits=st.sampled_from(bits),
        symmetric=st.booleans(),
        signed=st.booleans(),
        per_channel=st.booleans(),
        range=st.sampled_from(RANGES),
        percentile=st.floats(50, 100, exclude_min=True) | st.integers(51, 100),
        momentum=SHARES,
        distribution=st.sampled_from(["auto", "laplace", "gauss"]),
        clip=st.sampled_from(["report", "corrected", "weighted", "optimal"]),
        dynamic=st.booleans(),
        bit_allocation=st.booleans(),
        clip_weight=NUMBERS,
    )
    return made(TensorSpec, fields)


def rules() -> st.SearchStrategy[Rule]:
    side = st.none() | st.just("inherit") | st.integers(2, 8) | specs()
    fields = some(skip=st.booleans(), weights=side, activations=side)
    return made(Rule, st.builds(lambda match, more: {"match": match, **more}, MATCHES, fields))


def reconstructions() -> st.SearchStrategy[Reconstruction]:
    counts = {
        name: st.integers(1, 10**6)
        for name in ("samples", "steps", "rows", "pool_rows", "batch_size")
    }
    flags = {name: st.booleans() for name in ("parallel", "blocks", "bfloat16")}
    return made(
        Reconstruction,
        some(
            method=st.sampled_from(["adaround", "adaquant", "gram"]),
            drop=SHARES,
            learning_rate=NUMBERS,
            beta=st.tuples(NUMBERS, NUMBERS),
            held_out=SHARES,
            max_bytes=st.none() | st.integers(1, 2**60),
            seed=st.integers(-5, 2**70),
            **counts,
            **flags,
        ),
    )


def budgets() -> st.SearchStrategy[Budget]:
    seconds = st.dictionaries(st.integers(2, 8), NUMBERS, max_size=2)
    fields = some(
        max_bytes=st.integers(1, 2**60),
        average_bits=NUMBERS,
        max_latency=NUMBERS,
        latency=st.dictionaries(st.text(max_size=3), seconds, max_size=2),
        max_drop=st.floats(0, 99),
        weight_bits=st.lists(st.integers(2, 8), min_size=1).map(tuple),
        activation_bits=st.none() | st.lists(st.integers(2, 8), min_size=1).map(tuple),
    )
    return made(Budget, fields)


def targets() -> st.SearchStrategy[Target]:
    operations = st.lists(st.sampled_from(["add", "mul", "softmax"]), max_size=2)
    own = some(
        signed=st.booleans(),
        zero_points=st.booleans(),
        integer_operations=operations,
        hands_on=st.lists(st.sampled_from(["move", "concat"]), max_size=2),
        end_bits=st.none() | st.integers(2, 8),
        ways=st.lists(st.sampled_from(["lower", "to_qdq"]), max_size=2),
    )
    named = st.sampled_from(["mine", "x86"])
    drawn = st.builds(lambda name, more: {"name": name, **more}, named, own)
    return st.sampled_from(list(TARGETS.values())) | made(Target, drawn)


def recipes() -> st.SearchStrategy[Recipe]:
    """Return recipes, half of them by the constructors."""
    shared = {
        "equalization": st.booleans(),
        "smoothing": st.booleans(),
        "bias_correction": st.sampled_from([True, False, "weights"]),
        "batchnorm_tuning": st.booleans(),
        "rules": st.lists(rules(), max_size=3),
        "end_bits": st.none() | st.integers(2, 8),
        "target": targets(),
        "logits": st.none() | specs(),
        "products": st.none() | specs(),
    }
    whole = some(
        weights=st.none() | specs((2, 4, 8)),
        activations=st.none() | specs(),
        reconstruction=st.none() | reconstructions(),
        budget=st.none() | budgets(),
        **shared,
    )
    options = {
        "weight_bits": st.integers(2, 8),
        "activation_bits": st.none() | st.integers(2, 8),
        "skip": st.lists(MATCHES, max_size=2),
        "weight_range": st.sampled_from(["minmax", "mse"]),
        "activation_symmetric": st.booleans(),
        "activation_range": st.sampled_from(["minmax", "aciq", "percentile"]),
        **shared,
    }
    learned = {**options, "steps": st.integers(1, 99), "blocks": st.booleans()}
    within = {**learned, "average_bits": NUMBERS, "max_drop": st.floats(0, 99)}
    del within["weight_bits"]
    return st.one_of(
        made(Recipe, whole),
        made(Recipe.minmax, some(**options)),
        made(Recipe.aciq, some(**options)),
        made(Recipe.adaround, some(**learned)),
        made(Recipe.mixed, some(**within)),
    )
