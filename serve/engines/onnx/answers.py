"""Pieces to OpenAI bodies: whole answers, and the events of a stream."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Iterator
from typing import Any

import orjson

from serve.engines.calls import whole_calls
from serve.engines.onnx.decoding.generation import Generation, Piece, SampledToken
from serve.engines.onnx.decoding.sampling import TokenLogprobs
from serve.engines.tokenizer import TextCodec

DONE = b"data: [DONE]\n\n"


def event(body: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def usage(generations: list[Generation], choices: int) -> dict[str, Any]:
    """Exact counts. A prompt counts once for its `choices` answers; end tokens count as generated."""
    prompts = generations[::choices]
    prompt = sum(g.prompt_tokens for g in prompts)
    completion = sum(g.new_tokens for g in generations)
    cached = sum(g.reused_tokens for g in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Answer:
    """The shape of one response: chat or completion, its id, and how pieces are written."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, model: str, codec: TextCodec) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model
        self.codec = codec
        self.head = orjson.dumps(
            {"id": self.id, "object": self.chunk_object, "created": self.created, "model": model}
        )[:-1]

    def body(self, choices: list[dict[str, Any]], counted: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": counted,
        }

    def chunk(self, choices: bytes, rest: bytes = b"") -> bytes:
        """One event of a stream; `choices` and `rest` are JSON already."""
        return b"".join((b"data: ", self.head, b',"choices":[', choices, b"]", rest, b"}\n\n"))

    def usage_event(self, counted: dict[str, Any]) -> bytes:
        """The last event, for `stream_options.include_usage`."""
        return self.chunk(b"", b',"usage":' + orjson.dumps(counted))

    def token_name(self, token: int) -> str:
        """A token as text, for log-probabilities; as OpenAI writes one that is part of a character: `bytes:\\xe6`."""
        raw = self.codec.raw_bytes[token]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class ChatAnswer(Answer):
    """/v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, codec: TextCodec, *, with_logprobs: bool) -> None:
        super().__init__(model, codec)
        self.with_logprobs = with_logprobs

    def first(self, index: int) -> bytes:
        """The event that opens a choice."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self.chunk(orjson.dumps(choice))

    def events(self, index: int, piece: Piece) -> Iterator[bytes]:
        """The events of one piece."""
        if piece.text or piece.sampled:
            yield self.chunk(
                b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}'
                % (index, orjson.dumps(piece.text), orjson.dumps(self._logprobs(piece.sampled)))
            )
        for part in piece.calls:
            delta = {"tool_calls": [part.delta()]}
            yield self.chunk(
                orjson.dumps({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            )
        if piece.finish:
            yield self.chunk(orjson.dumps({"index": index, "delta": {}, "logprobs": None} | end(piece)))

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One whole choice; `piece` is all of its pieces joined."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": piece.text,
            "refusal": None,
            "annotations": [],
        }
        if piece.calls:
            message |= {"content": piece.text or None, "tool_calls": whole_calls(piece.calls)}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece.sampled) if self.with_logprobs else None,
        } | end(piece)

    def _logprobs(self, sampled: list[SampledToken]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = []
        for one in sampled:
            assert one.logprobs is not None  # only a prompt's first token has none
            top = [self._entry(token, value) for token, value in one.logprobs.top]
            content.append({**self._entry(one.token, one.logprobs.chosen), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.token_name(token),
            "logprob": logprob,
            "bytes": list(self.codec.raw_bytes[token]),
        }


class CompletionAnswer(Answer):
    """/v1/completions."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, codec: TextCodec, *, with_logprobs: bool) -> None:
        super().__init__(model, codec)
        self.with_logprobs = with_logprobs
        self.offsets: dict[int, Offsets] = {}

    def first(self, index: int) -> bytes:
        """Nothing: a completion's stream opens with its first text."""
        return b""

    def events(self, index: int, piece: Piece) -> Iterator[bytes]:
        """The event of one piece."""
        yield self.chunk(orjson.dumps(self._choice(index, piece)))

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """One whole choice; `piece` is all of its pieces joined."""
        choice = self._choice(index, piece)
        if logprobs := choice["logprobs"]:  # the tokens of a stop string are not in the text
            logprobs["text_offset"] = [min(place, len(piece.text)) for place in logprobs["text_offset"]]
        return choice

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(index, piece.sampled) if self.with_logprobs else None,
        } | end(piece)

    def _logprobs(self, index: int, sampled: list[SampledToken]) -> dict[str, Any]:
        offsets = self.offsets.setdefault(index, Offsets(self.codec))
        return {
            "tokens": [self.token_name(one.token) for one in sampled],
            "token_logprobs": [one.logprobs and one.logprobs.chosen for one in sampled],
            "top_logprobs": [one.logprobs and self._top(one.logprobs) for one in sampled],
            "text_offset": [offsets.add(one) for one in sampled],
        }

    def _top(self, logprobs: TokenLogprobs) -> dict[str, float]:
        """As many entries as were asked for, also where two tokens have one name."""
        top: dict[str, float] = {}
        for token, value in logprobs.top:
            name = self.token_name(token)
            top[f"token_id:{token}" if name in top else name] = value
        return top


class Offsets:
    """Where the tokens of one answer begin in its text, in characters: parts of a character where it begins."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.characters = 0

    def add(self, one: SampledToken) -> int:
        """The place of the next token."""
        place = self.characters
        shown = self.codec.raw_bytes if one.echoed else self.codec.token_bytes
        self.characters += len(self.decoder.decode(shown[one.token]))
        return place


def end(piece: Piece) -> dict[str, Any]:
    """Why a choice ended, if it has; as vLLM does with the stop string that ended it."""
    stop = {"stop_reason": piece.stop} if piece.stop else {}
    return {"finish_reason": piece.finish, **stop}


def join(pieces: list[Piece]) -> Piece:
    """All pieces of one choice as one."""
    sampled = [one for piece in pieces for one in piece.sampled]
    calls = [part for piece in pieces for part in piece.calls]
    last = pieces[-1]
    return Piece("".join(p.text for p in pieces), calls, sampled, last.finish, last.stop, last.error)
