"""What an engine tells of an answer before its first byte, as one header of its HTTP: nobody else knows it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

HEADER = "x-everlearn-told"


@dataclass(frozen=True, slots=True)
class Told:
    """How long the prompt is, how much of it was in the cache, and how tokens are sampled.

    None where the engine did not say: one of another make knows nothing of this.
    """

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None

    def headers(self) -> dict[str, str]:
        """As an engine sends it."""
        return {HEADER: to_json(asdict(self)).decode()}


def told_in(headers: Mapping[str, str]) -> Told:
    """What an engine's headers tell; nothing where they are another server's."""
    try:
        return _TOLD.validate_json(headers.get(HEADER, "{}"))
    except ValidationError:
        return Told()


_TOLD = TypeAdapter(Told)
