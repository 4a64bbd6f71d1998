"""Options of data preparation, under a recipe's ``data``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class DataOptions(BaseModel):
    """How data is prepared. Lengths are in characters (of Chinese, Japanese, Korean and Thai, one counts as four of
    ``min_chars``), shares from 0 to 1.

    ``max_tokens`` cuts: set it to the tokens a model is trained on at once. ``near_duplicates`` is the Jaccard
    similarity from which of two texts only one is kept; None keeps all that are not equal. ``normalize`` writes
    texts in Unicode's NFC, ``strip`` takes spaces from line ends: both change code and Markdown. ``min_held``: so many
    documents at least are held out, and of a quarter up to twice as many, however small ``held_fraction`` is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "text", "chat"] = "auto"
    held_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    min_held: Count = 0
    max_tokens: Annotated[int, Field(ge=2)] = 2048
    min_chars: Count = 16
    max_chars: Annotated[int, Field(gt=0)] = 2_000_000
    max_repeated_lines: Share = 0.5
    max_repeated_chars: Share = 0.5
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = 0.8
    normalize: bool = False
    strip: bool = False
    min_examples: Annotated[int, Field(ge=1)] = 1
    max_line_bytes: Annotated[int, Field(gt=0)] = 2**20
