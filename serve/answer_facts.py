"""Facts about an answer that only its engine knows, sent before the first byte in a header of their own."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

HEADER = "x-everlearn-told"


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """The length of the prompt, how much of it was in the cache, and how tokens are sampled.

    None where the engine did not say; another server's engine says nothing of it.
    """

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None

    def headers(self) -> dict[str, str]:
        """The header that an engine sends."""
        return {HEADER: to_json(asdict(self)).decode()}


def facts_in(headers: Mapping[str, str]) -> AnswerFacts:
    """The facts in an engine's headers; empty where another server sent them."""
    try:
        return _FACTS.validate_json(headers.get(HEADER, "{}"))
    except ValidationError:
        return AnswerFacts()


_FACTS = TypeAdapter(AnswerFacts)
