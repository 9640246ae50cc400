"""What fields and options may be, with errors that say whose they are and what to give.

@known_fields                    →  TensorSpec(bit=4)
@dataclass(frozen=True)              RecipeError: TensorSpec: unknown option 'bit': did you mean
class TensorSpec: …                  bits? It has bits, symmetric, …
"""

from __future__ import annotations

import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeGuard, TypeVar, Union

from fxquant.errors import RecipeError

_Kind = TypeVar("_Kind", bound=type)
WEIGHT_BITS = tuple(range(2, 9))
ACTIVATION_BITS = (*WEIGHT_BITS, 16)
_FEW = 12
_OTHER_WORDS = {
    "a_bits": "activation_bits", "abits": "activation_bits", "w_bits": "weight_bits",
    "wbits": "weight_bits", "epochs": "steps", "iterations": "steps", "iters": "steps",
    "num_iterations": "steps", "lr": "learning_rate", "num_samples": "samples",
    "backend": "target", "exclude": "skip", "ignore": "skip", "ignored_scope": "skip",
    "observer": "range",
}  # fmt: skip
"""What other libraries call an option."""
_known: dict[str, Sequence[str]] = {}
"""The options of each constructor, by its name as a caller writes it."""


def known_fields(kind: _Kind) -> _Kind:
    """Let the dataclass raise `RecipeError` for arguments that it has no fields for."""
    own = fields(kind)
    names = [each.name for each in own]
    by_place = [each.name for each in own if not each.kw_only]
    required = [
        each.name for each in own if each.default is MISSING and each.default_factory is MISSING
    ]
    make = vars(kind)["__init__"]
    know_options(kind.__name__, names)

    @functools.wraps(make)
    def __init__(self: object, *given: Any, **options: Any) -> None:
        require_known(kind.__name__, options, names)
        require_by_name(kind.__name__, given, names, len(by_place))
        missing = [name for name in required[len(given) :] if name not in options]
        if missing:
            raise RecipeError(f"{kind.__name__}: {missing[0]} is missing: give {missing[0]}=…")
        make(self, *given, **options)

    kind.__init__ = __init__  # type: ignore[misc]
    return kind


def know_options(constructor: str, names: Sequence[str]) -> None:
    """Tell what `constructor` takes, to errors of other constructors that do not."""
    _known[constructor] = names


def require_by_name(
    constructor: str, given: Sequence[object], names: Sequence[str], by_place: int = 0
) -> None:
    """Raise if more arguments are given by place than may be."""
    if len(given) > by_place:
        shown = [repr(each) for each in given[:by_place]]
        shown += [f"{name}={each!r}" for name, each in zip(names, given, strict=False)][by_place:]
        call = f"{constructor}({', '.join(shown)})"
        raise RecipeError(f"{constructor}: options go by name, as in {call}")


def require_known(constructor: str, options: Iterable[str], names: Sequence[str]) -> None:
    """Raise if one of the `options` is none of `names`; say which ones come near."""
    for option in options:
        if option not in names:
            instead = _instead(option, constructor, names)
            raise RecipeError(f"{constructor}: unknown option {option!r}: {instead}")


def _instead(option: str, constructor: str, names: Sequence[str]) -> str:
    """Return what the caller may have meant by an unknown option."""
    option = _OTHER_WORDS.get(option, option)
    if option in names:
        return f"here it is {option}"
    sides = [f"{side}_{option}" for side in ("weight", "activation")]
    sides += ["weights", "activations"] if option == "bits" else []
    own = [each for each in sides if each in names]
    if own:
        return f"say of what: {' or '.join(own)}"
    where = [other for other, theirs in _known.items() if option in theirs]
    if where:
        return f"it is one of {_listed(where)}"
    near = nearest(option, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    few = len(names) <= _FEW
    return (
        f"it has {', '.join(names)}" if few else f"help({constructor}) lists those that there are"
    )


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that `name` may have been meant to be, the nearest first, of any case.

    >>> nearest("stps", ["rows", "steps"]), nearest("bias", ["bias_correction", "beta"])
    (['steps'], ['bias_correction'])
    """
    listed = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), listed, n=3, cutoff=0.65)
    near = near or [each for each in listed if name in each.split("_")][:3]
    return [listed[each] for each in near]


def check_types(options: Any, where: str = "", but: Sequence[str] = ()) -> None:
    """Raise if a field has not the type that it declares: a flag, a number, one of some words.

    Fields of other types, and those of the names `but`, are left to the class.
    """
    for name, hint in _hints(options.__class__).items():
        value = getattr(options, name)
        if name in but or _fits(value, hint):
            continue
        words = [each for each in _words(hint) if isinstance(each, str)]
        near = nearest(value, words) if isinstance(value, str) else []
        more = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"{where}{name}={value!r}: {_wanted(hint)}{more}")


def check_bits(name: str, bits: object, widths: Sequence[int], none: str = "") -> None:
    """Raise if `bits`, given as `name`, is none of `widths`; `none` says what None would mean."""
    if (none and bits is None) or (type(bits) is int and bits in widths):
        return
    what = "2 to 8" if 16 not in widths else "2 to 8 or 16"
    raise RecipeError(f"{name}={bits!r}: choose {what}{none and f', or None {none}'}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    own = {each.name: hints[each.name] for each in fields(kind)}
    return {name: hint for name, hint in own.items() if all(map(_is_simple, _members(hint)))}


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _is_simple(hint: Any) -> bool:
    return hint in (bool, int, float, str, type(None)) or typing.get_origin(hint) is Literal


def _words(hint: Any) -> list[Any]:
    """Return what a field chooses from, if there are only so many values."""
    words: list[Any] = []
    for each in _members(hint):
        if typing.get_origin(each) is Literal:
            words += typing.get_args(each)
        elif each is bool:
            words += [True, False]
    return words


def _fits(value: object, hint: Any) -> bool:
    for each in _members(hint):
        if each is type(None):
            fits = value is None
        elif typing.get_origin(each) is Literal:
            fits = isinstance(value, str) and value in typing.get_args(each)
        elif each is float:
            fits = is_number(value)
        else:
            fits = type(value) is each
        if fits:
            return True
    return False


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether `value` is a finite number: no flag, no NaN."""
    try:
        return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _wanted(hint: Any) -> str:
    members, words = _members(hint), _words(hint)
    none = " or None" if type(None) in members else ""
    if words:
        listed = _listed([repr(each) for each in words], "or")
        return (
            f"choose {listed}{none}" if bool in members else f"choose one of {_plain(words)}{none}"
        )
    kind = {int: "an integer", float: "a finite number", str: "a string"}[members[0]]
    return f"give {kind}{none}"


def _plain(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))


def _listed(names: Sequence[str], last: str = "and") -> str:
    """Return "a, b and c"."""
    return f" {last} ".join([each for each in (", ".join(names[:-1]), names[-1]) if each])
