"""Constructors that take options by name, and say which: errors, signatures, docstrings.

The meaning of an option stands once, in the docstring below its field. `describe_constructors` puts
it into the docstrings of the constructors that take it, with the default that it has there.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from fxquant.recipe.budget import Budget
from fxquant.recipe.checks import know_options, require_by_name, require_known
from fxquant.recipe.nearest_start import options_of
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import as_code
from fxquant.recipe.spec import TensorSpec
from fxquant.recipe.target import Target

_Make = TypeVar("_Make", bound=Callable[..., Any])
_PARAMETERS = {
    "weight_bits": "Of the weights: 2 to 8.",
    "activation_bits": "Of what layers and additions read: 2 to 8, 16, or None: it stays in float.",
    "skip": "Names of calls, globs or module types to leave in float; one, or a list.",
    "rules": "`Rule`s that override the recipe for single calls; later ones win.",
}
_FIELD = re.compile(r'^    (\w+): [^\n]+\n    """(.*?)"""$', re.MULTILINE | re.DOTALL)
_WIDTH = 96
_NO_WEIGHTS = " None: they stay in float."


def by_name(options: type) -> Callable[[_Make], _Make]:
    """Let a classmethod raise `RecipeError` for what is none of its options, or comes by place.

    Args:
        options: the `TypedDict` of its `**options`.
    """

    def decorate(make: _Make) -> _Make:
        own = inspect.signature(make).parameters.values()
        names = [each.name for each in own if each.kind is each.KEYWORD_ONLY]
        names += [name for name in options.__annotations__ if name not in names]
        constructor = make.__qualname__
        know_options(constructor, names)

        @functools.wraps(make)
        def checked(cls: type, *given: Any, **options: Any) -> Any:
            require_by_name(constructor, given, names)
            require_known(constructor, options, names)
            return make(cls, **options)

        checked.__signature__ = _signature(dict.fromkeys(names))  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def describe_constructors(examples: Mapping[str, Any]) -> None:
    """Write options and defaults into signatures and docstrings of the constructors of recipes.

    Args:
        examples: what each constructor returns by default, by its name.
    """
    kind = type(next(iter(examples.values())))
    parts: list[Any] = [kind, TensorSpec, Rule, Reconstruction, Budget, Target]
    for part in parts:
        _list_items(part, "Attributes:", field_docs(part))
    for name, example in examples.items():
        constructor = getattr(kind, name).__func__
        options = list(inspect.signature(constructor).parameters)[1:]
        defaults = options_of(example, options)
        if "average_bits" in options:
            defaults |= _defaults(Budget) | {"activation_bits": defaults["activation_bits"]}
        defaults = {option: defaults.get(option) for option in options}
        if "steps" in options:
            defaults["reconstruction"] = example.reconstruction
        defaults["target"] = example.target.name
        meanings = _meanings(kind, options)
        shown = {
            option: f"{meanings[option]} Default: {as_code(default)}."
            for option, default in defaults.items()
        }
        _list_items(constructor, "Args:", shown)
        constructor.__signature__ = _signature(defaults)


def _signature(defaults: Mapping[str, Any]) -> inspect.Signature:
    """Return the signature of a classmethod with these options."""
    keyword, first = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("cls", first)]
    parameters += [inspect.Parameter(name, keyword, default=defaults[name]) for name in defaults]
    return inspect.Signature(parameters)


def _meanings(recipe: type, options: list[str]) -> dict[str, str]:
    """Return what each option of a constructor means, in one line."""
    meanings: dict[str, str] = {}
    for side in ("weight", "activation"):
        for name, text in field_docs(TensorSpec).items():
            meanings[f"{side}_{name}"] = re.sub(r"`(\w+=)", rf"`{side}_\1", text)
    meanings |= field_docs(recipe)
    if "steps" in options:
        meanings |= field_docs(Reconstruction)
    own = dict(_PARAMETERS)
    if "average_bits" in options:
        meanings |= field_docs(Budget)
        del own["weight_bits"]
    elif "steps" not in options:
        own["weight_bits"] += _NO_WEIGHTS
    return {name: _sentence(text) for name, text in (meanings | own).items()}


def _defaults(kind: type) -> dict[str, Any]:
    return {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(kind)
    }


def _list_items(described: Any, heading: str, items: Mapping[str, str]) -> None:
    """Put a list of names and what they mean behind a docstring."""
    lines = [inspect.cleandoc(described.__doc__ or ""), "", heading]
    for name, text in items.items():
        lines += _wrapped(f"{name}: {_sentence(text)}")
    described.__doc__ = "\n".join(lines)


def _wrapped(item: str) -> list[str]:
    """Return an item in lines; `textwrap` takes ten times as long, at every import."""
    lines, line = [], "   "
    for word in item.split():
        if len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = " " * 7
        line = f"{line} {word}"
    return [*lines, line]


def _sentence(text: str) -> str:
    """Return a text in one line, ending as sentences do."""
    joined = " ".join(text.split())
    return joined if joined.endswith(".") else f"{joined}."


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass, by name; "" without its source.

    >>> field_docs(TensorSpec)["bits"]
    'How many: 2 to 8; activations may have 16.'
    """
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except OSError:
        source = ""
    _, _, own = source.partition(f"\nclass {kind.__name__}:\n")
    docs = {name: " ".join(text.split()) for name, text in _FIELD.findall(own)}
    return {each.name: docs.get(each.name, "") for each in fields(kind)}
