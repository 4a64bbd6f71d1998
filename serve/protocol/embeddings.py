"""The body of OpenAI's embeddings."""

from typing import Literal

from serve.protocol.body import Labels
from serve.protocol.completions import Prompt


class EmbeddingRequest(Labels):
    """POST /v1/embeddings."""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
