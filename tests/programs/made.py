"""The programs that lowered models have made."""

from typing import Any

from fxquant.programs import programs_of
from fxquant.programs.program import Program


def program_of(model: Any) -> Program:
    """Return the last one."""
    programs = programs_of(model)
    assert programs is not None
    return list(programs._made.values())[-1]
