"""An estimate of a request's tokens from its bytes and limits, before its engine has counted them."""

from typing import NamedTuple

from serve.protocol.body import ModelRequest
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.messages import MessagesRequest
from serve.protocol.predictions import (
    ClassifyRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
    TaskRequest,
)
from serve.protocol.responses import ResponsesRequest

BYTES_PER_TOKEN = 4
"""For English text. Other languages have fewer bytes per token; the engine's count corrects the estimate."""
UNNAMED_ANSWER_TOKENS = 1024
"""Reserved for an answer whose request gives no limit."""
UNNAMED_COMPLETION_TOKENS = 16
"""OpenAI's default limit of a completion."""

IMAGE_TOKENS = 256
"""For each image, however many bytes it has: the patches of a model that sees 224 pixels a side."""

LARGEST_CONTEXT_TOKENS = 128 * 1024
"""For a model that does not tell its own."""


class Cost(NamedTuple):
    """Estimated tokens of the prompt, and the most tokens of each of the answers."""

    prompt: int = 0
    longest: int = 0
    answers: int = 1

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer(None)

    def answer(self, context: int | None) -> int:
        """The most tokens of all answers together, where the model holds ``context`` tokens (None: unknown)."""
        return self.answers * min(self.longest, context or LARGEST_CONTEXT_TOKENS)


NOTHING = Cost()


def expected(body: ModelRequest, size_bytes: int) -> Cost:
    """The estimate for a body. Embeddings and predictions cost their prompt alone; counting tokens costs nothing."""
    prompt = -(-size_bytes // BYTES_PER_TOKEN)
    if isinstance(body, EmbeddingRequest) and (images := body.images):
        return Cost(-(-(size_bytes - sum(map(len, images))) // BYTES_PER_TOKEN) + IMAGE_TOKENS * len(images))
    if isinstance(body, (EmbeddingRequest, ClassifyRequest, PoolingRequest, ScoreRequest, TaskRequest)):
        return Cost(prompt)
    if isinstance(body, RerankRequest):  # the query is read with each document
        return Cost(prompt + len(body.query) * (len(body.documents) - 1) // BYTES_PER_TOKEN)
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
