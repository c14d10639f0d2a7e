"""Options of a command as a section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

Checked = TypeVar("Checked", bound="BaseModel")


def checked(kind: type[Checked], **given: Any) -> Checked:
    """A section of a recipe from the options of the same names.

    Raises:
        ValueError: with every fault, by its option.
    """
    from pydantic import ValidationError

    try:
        return kind(**given)
    except ValidationError as error:
        wrong = [
            ": ".join([*(f"--{str(place).replace('_', '-')}" for place in problem["loc"]), str(problem["msg"])])
            for problem in error.errors()
        ]
        raise ValueError("; ".join(wrong).replace("Value error, ", "")) from None
