"""What all tables of settings have in common, and the kinds of value that several of them use.

Every number has two ends and every text a longest: a run's settings come from somebody else.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A table of settings: frozen, strict, nothing unknown, ``kebab-case`` outside of Python."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


Granularity = Literal["group", "block", "model", "jacobi"]
"""What one round of a chain solves."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction, both ends included."""
NonZeroShare = Annotated[float, Field(gt=0, le=1)]
"""A fraction that leaves something."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
"""A factor."""
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
"""A factor that may switch something off."""
Rate = Annotated[float, Field(gt=0, le=10)]
"""A learning rate."""
Rounds = Annotated[int, Field(ge=1, le=10_000)]
"""Of messages to every site."""
Steps = Annotated[int, Field(ge=0, le=100_000)]
"""Of an optimiser; 0 takes none."""
Rank = Annotated[int, Field(ge=0, le=65_536)]
"""Of a matrix, where 0 stands for as it is."""
Samples = Annotated[int, Field(ge=0, le=1_000_000_000)]
"""Of a site, where 0 stands for all."""
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
"""Samples at once."""
Tokens = Annotated[int, Field(ge=1, le=1_048_576)]
"""Of one text."""
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
"""Up to a year."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every generator takes."""
_VISIBLE = r"^[^\x00-\x1f\x7f-\x9f\x{200b}-\x{200f}\x{2028}-\x{202e}\x{2060}-\x{2069}\x{feff}]*$"
PathText = Annotated[str, Field(max_length=4096, pattern=_VISIBLE)]
"""A path, or nothing."""
ColumnText = Annotated[str, Field(max_length=256, pattern=r"^[^\x00\n\r]*$")]
"""What a column of somebody's samples is called, or nothing."""
WordText = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9:_.-]*$")]
"""A word that a library of ours knows."""
ListText = Annotated[str, Field(max_length=16_384, pattern=_VISIBLE)]
"""Names with commas between them."""
LineText = Annotated[str, Field(max_length=256, pattern=_VISIBLE)]
"""A few words for people, or nothing."""
