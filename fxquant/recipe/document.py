"""Recipes as documents: JSON that says what differs from the defaults, and back.

    Recipe.adaround(skip=[nn.Linear]).to_json()   →   {"fxquant_recipe": 1,
                                                       "weights": {"bits": 4, …},
                                                       "rules": [{"type": "torch.nn.Linear", …}]}

Objects are the arguments of `Recipe`, `TensorSpec`, `Rule`, `Reconstruction`, `Budget` and
`Target`, by name; a target that fxquant knows is its name. What a document leaves out is what these
classes say by default: whoever changes a default raises `_VERSION`, and goes on reading the older
documents as they were meant.

Reading a document runs no code of its own. The module types of its rules are PyTorch's,
torchvision's, and those that the caller gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from fxquant.errors import RecipeError
from fxquant.recipe.budget import Budget
from fxquant.recipe.checks import WEIGHT_BITS
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.recipe.rule import Rule
from fxquant.recipe.shown import changed_fields
from fxquant.recipe.spec import TensorSpec
from fxquant.recipe.target import TARGETS, Target
from fxquant.stored_names import module_type_named

_Recipe = TypeVar("_Recipe")
_HEAD = "fxquant_recipe"
_VERSION = 1
_PARTS: dict[str, type] = {
    "weights": TensorSpec,
    "activations": TensorSpec,
    "logits": TensorSpec,
    "products": TensorSpec,
    "reconstruction": Reconstruction,
    "budget": Budget,
    "target": Target,
}
"""Fields whose objects are of a class; in rules, too."""
_NN = "torch.nn."


def to_document(recipe: Any) -> str:
    """Return a recipe as JSON: see `Recipe.to_json`."""
    kinds = {rule.match for rule in recipe.rules if isinstance(rule.match, type)}
    names = {_type_name(kind): kind for kind in kinds}
    for kind in kinds:
        if names[_type_name(kind)] is not kind:
            raise RecipeError(
                f"to_json: rules name two module types {_type_name(kind)!r}: give one of them "
                "another name, or match it by the names of its calls"
            )
    document = {_HEAD: _VERSION, **_encoded(recipe)}
    return json.dumps(document, indent=2, allow_nan=False)


def _encoded(value: Any) -> Any:
    """Return a field's value as JSON writes it."""
    if isinstance(value, Target) and TARGETS.get(value.name) == value:
        return value.name
    if isinstance(value, (tuple, list)):
        return [_encoded(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _encoded(each) for key, each in value.items()}
    if not hasattr(value, "__dataclass_fields__"):
        return value
    given = changed_fields(value)
    if isinstance(value, Rule) and isinstance(value.match, type):
        given = {"type": _type_name(given.pop("match")), **given}
    return {name: _encoded(each) for name, each in given.items()}


def from_document(text: str, kind: type[_Recipe], custom: Iterable[type[nn.Module]]) -> _Recipe:
    """Return the recipe, a `kind`, that a document describes: see `Recipe.from_json`."""
    document = _parsed(text)
    version = document.pop(_HEAD, None)
    if version is None:
        raise RecipeError(f"from_json: no {_HEAD!r}: this is not what Recipe.to_json() wrote")
    if type(version) is not int or version < 1:
        raise RecipeError(f"from_json: {_HEAD}={version!r}: versions are 1 to {_VERSION}")
    if version > _VERSION:
        raise RecipeError(
            f"from_json: {_HEAD}={version}: written by a later fxquant; this one reads up to "
            f"{_VERSION}: install another"
        )
    types = {f"{each.__module__}:{each.__qualname__}": each for each in custom}
    return _Reader(types).build(kind, document, "")  # type: ignore[no-any-return]


def _parsed(text: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise RecipeError(f"from_json: got a {type(text).__name__}: give the document as a str")
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError("from_json: lists in lists, too many: no recipe is that deep") from None
    except ValueError as error:
        path = "; of a file give the text: Path(…).read_text()" if text.endswith(".json") else ""
        raise RecipeError(f"from_json: {text[:40]!r} is no JSON: {error}{path}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"from_json: a {type(document).__name__}: give a JSON object, {{…}}")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of two fields with one name the last would silently win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"from_json: {twice!r} is given twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise RecipeError(f"from_json: {name}: a recipe has finite numbers alone")


class _Reader:
    """What builds the objects of one document.

    Args:
        types: module types of the caller's that rules may name.
    """

    def __init__(self, types: Mapping[str, type[nn.Module]]) -> None:
        self._types = types

    def build(self, kind: type, given: dict[str, Any], where: str) -> Any:
        """Return an object of `kind`, with these arguments; `where` it stands in the document."""
        arguments = {name: self._value(name, each, where) for name, each in given.items()}
        if kind is Rule and "type" in arguments:
            if "match" in arguments:
                raise RecipeError(f"from_json: {where}: 'type' beside 'match': give one of them")
            arguments["match"] = self._type_named(arguments.pop("type"), where)
        try:
            return kind(**arguments)
        except RecipeError as error:
            raise RecipeError(f"from_json: {where and f'{where}: '}{error}") from None

    def _value(self, name: str, value: Any, where: str) -> Any:
        here = f"{where}.{name}" if where else name
        if name == "rules" and isinstance(value, list):
            return [self._rule(each, f"{here}[{number}]") for number, each in enumerate(value)]
        if name in _PARTS and isinstance(value, dict):
            return self.build(_PARTS[name], value, here)
        if name == "latency" and isinstance(value, dict):
            return {layer: _with_widths(seconds) for layer, seconds in value.items()}
        return tuple(value) if isinstance(value, list) else value

    def _rule(self, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            what = "give an object, as {'match': 'fc', 'weights': 8}"
            raise RecipeError(f"from_json: {where}: {value!r:.60}: {what}")
        return self.build(Rule, value, where)

    def _type_named(self, name: Any, where: str) -> type[nn.Module]:
        found: Any = None
        if isinstance(name, str):
            public = vars(nn).get(name.removeprefix(_NN)) if name.startswith(_NN) else None
            found = self._types.get(name) or public or module_type_named(name)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
        own = str(name).rpartition(".")[2].rpartition(":")[2]
        raise RecipeError(
            f"from_json: {where}: type={name!r:.80} is no module type of PyTorch's or "
            f"torchvision's: if it is yours, Recipe.from_json(text, custom=[{own:.40}])"
        )


def _with_widths(seconds: Any) -> Any:
    """Return a table with integers for its keys, which JSON has as text."""
    if not isinstance(seconds, dict):
        return seconds
    widths = {str(bits): bits for bits in WEIGHT_BITS}
    return {widths.get(bits, bits): value for bits, value in seconds.items()}


def _type_name(kind: type) -> str:
    if vars(nn).get(kind.__qualname__) is kind:
        return f"{_NN}{kind.__qualname__}"
    return f"{kind.__module__}:{kind.__qualname__}"
