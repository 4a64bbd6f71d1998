"""What a request may cost, before its engine has counted: tokens are known only there, bytes are known here."""

from typing import NamedTuple

from serve.protocol.body import ModelRequest
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.messages import MessagesRequest
from serve.protocol.responses import ResponsesRequest

BYTES_PER_TOKEN = 4
"""Of an English request; others have fewer bytes in a token, which the engine's count makes good."""
UNNAMED_ANSWER_TOKENS = 1024
"""So many are reserved for an answer whose request names no limit."""
UNNAMED_COMPLETION_TOKENS = 16
"""The limit of a completion that names none, as OpenAI has it."""

LARGEST_CONTEXT_TOKENS = 128 * 1024
"""Of a model that does not tell its own."""


class Cost(NamedTuple):
    """Tokens of the prompt, as its bytes let expect, and of each of the answers, at most."""

    prompt: int = 0
    longest: int = 0
    answers: int = 1

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer(None)

    def answer(self, context: int | None) -> int:
        """Of all answers together, by a model of so large a context (None: unknown): a request may name any limit."""
        return self.answers * min(self.longest, context or LARGEST_CONTEXT_TOKENS)


NOTHING = Cost()


def expected(body: ModelRequest, size_bytes: int) -> Cost:
    """Nothing for what is only counted, and no answer for what is only embedded."""
    prompt = -(-size_bytes // BYTES_PER_TOKEN)
    if isinstance(body, EmbeddingRequest):
        return Cost(prompt)
    if isinstance(body, ResponsesRequest):
        return Cost(prompt, body.max_output_tokens or UNNAMED_ANSWER_TOKENS)
    if isinstance(body, MessagesRequest):
        return Cost(prompt, body.max_tokens)
    if isinstance(body, ChatRequest):
        return Cost(prompt, body.max_new_tokens or UNNAMED_ANSWER_TOKENS, body.n or 1)
    if isinstance(body, CompletionRequest):
        several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
        answers = (len(body.prompt) if several else 1) * (body.n or 1)
        longest = UNNAMED_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return Cost(prompt, longest, answers)
    return NOTHING
