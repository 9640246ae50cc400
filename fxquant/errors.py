"""The errors that fxquant raises, each by what the caller did.

Every message says where, what is wrong, with which values, and what to do next.
"""

from __future__ import annotations

from typing import Any


class FxquantError(Exception):
    """Any error that fxquant raises on purpose."""


class RecipeError(FxquantError, ValueError):
    """A recipe asks for what does not exist: bits out of range, a rule that matches nothing.

    So does an option that there is not, for which Python itself would raise `TypeError`: of a
    mistake in a recipe this is the one error to catch.
    """


class CaptureError(FxquantError, RuntimeError):
    """The model cannot be traced into an FX graph."""

    obstacle = ""
    """What stands in the way, and where, in a few words."""


class PassError(FxquantError, RuntimeError):
    """A pass found its input in a state that it cannot start from."""


class CalibrationError(FxquantError, RuntimeError):
    """The calibration data is missing, of the wrong type, or not finite."""


class RankError(FxquantError, RuntimeError):
    """Ranks of `torch.distributed` differ in what they work on, or one has failed or ended."""


class StorageError(FxquantError, OSError):
    """A file cannot be written, or was written for something else."""


class LoweringError(FxquantError, RuntimeError):
    """A model has no integer form, or this machine no kernels for it."""


def kind_of(value: Any) -> str:
    """Return the class of a value with its article, as messages name it.

    >>> kind_of(3), kind_of([]), kind_of(None)
    ('an int', 'a list', 'None')
    """
    return "None" if value is None else with_article(type(value).__name__)


def with_article(name: str) -> str:
    """Return "a" or "an" and a name, as it is spoken: of capitals by the first letter's own name.

    >>> [with_article(each) for each in ("Image", "UNet", "LSTM", "Uniform", "Upsample")]
    ['an Image', 'a UNet', 'an LSTM', 'a Uniform', 'an Upsample']
    """
    is_spelled = name[:2].isupper()
    if is_spelled:
        has_vowel = name[:1] in "AEFHILMNORSX"
    else:
        has_vowel = name[:1].lower() in "aeiou" and not name.lower().startswith(("uni", "use"))
    return f"{'an' if has_vowel else 'a'} {name}"
