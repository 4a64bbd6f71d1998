"""POST /tokenize and /detokenize, as vLLM has them: a prompt is counted as the request would be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from everlearn.errors import InvalidInput
from serve.engines.grammar import offered_tools
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.requests import RequestReader
from serve.engines.onnx.responder import Responder
from serve.protocol.parsing import parse
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest


def token_routes(
    reader: RequestReader, readers: Readers
) -> dict[str, Callable[[bytes, Responder], Awaitable[None]]]:
    """What a generating backend offers besides answers."""

    async def tokenize(body: bytes, responder: Responder) -> None:
        await responder.json(await readers.read(body, responder, partial(_tokens, reader, body)))

    async def detokenize(body: bytes, responder: Responder) -> None:
        await responder.json(await readers.read(body, responder, partial(_text, reader, body)))

    return {"/tokenize": tokenize, "/detokenize": detokenize}


def _tokens(reader: RequestReader, body: bytes) -> dict[str, Any]:
    request = parse(TokenizeRequest, body)
    if request.messages is None:
        tokens = reader.codec.count(request.prompt or "")
    else:
        tokens = reader.template.encode(request.messages, offered_tools(request))
    return {"count": len(tokens), "max_model_len": reader.context, "tokens": tokens}


def _text(reader: RequestReader, body: bytes) -> dict[str, Any]:
    """Special tokens show as their names. Raises InvalidInput for a token that there is not."""
    tokens = parse(DetokenizeRequest, body).tokens
    last = reader.config.vocab_size - 1
    if tokens and max(tokens) > last:
        raise InvalidInput(f"tokens has {max(tokens)}; the vocabulary ends at {last}", param="tokens")
    return {"prompt": reader.codec.decode(tokens)}
