"""What all tables of settings have in common, and the kinds of number that several of them use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Settings(BaseModel):
    """A table of settings: frozen, strict, nothing unknown, ``kebab-case`` outside of Python."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=_kebab,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction, both ends included."""
NonZeroShare = Annotated[float, Field(gt=0, le=1)]
"""A fraction that leaves something."""
Positive = Annotated[float, Field(gt=0)]
"""A factor."""
NonNegative = Annotated[float, Field(ge=0)]
"""A factor that may switch something off."""
