"""The recipe's key ``contrastive.augment``, apart from what computes: the gateway validates recipes without numpy."""

from pydantic import BaseModel, ConfigDict, Field


class Augment(BaseModel):
    """How much at most; 0 leaves it. ``shift``: up, down and sideways, of the side. ``zoom``: larger and smaller, of the
    size. ``rotate``: degrees, both ways. ``flip``: how often left and right are exchanged: never where it matters, as of
    flags, arrows and letters. ``colour``: brightness, contrast, saturation and each colour, of their strength.
    What comes in at the edges continues them. ``words``: how many of a text's tokens are left out, the first and the last,
    where its marks are, never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    shift: float = Field(default=0, ge=0, le=0.5)
    zoom: float = Field(default=0, ge=0, le=0.5)
    rotate: float = Field(default=0, ge=0, le=180)
    flip: float = Field(default=0, ge=0, le=1)
    colour: float = Field(default=0, ge=0, le=1)
    words: float = Field(default=0, ge=0, le=0.9)
