"""Anthropic's messages as chat completions, and back. Stateless: text and the client's tools."""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import jiter

from everlearn.errors import EverlearnError
from serve.answer_facts import AnswerFacts
from serve.gateway.formats.translator import MalformedAnswer, PassThrough, reading_answer
from serve.gateway.http.failures import describe
from serve.protocol.chat import ChatRequest
from serve.protocol.messages import (
    AssistantTurn,
    CountTokensRequest,
    MessagesRequest,
    NamedToolChoice,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)
from serve.protocol.parsing import validate
from serve.protocol.tokens import TokenizeRequest

Json = dict[str, Any]

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def describe_as_anthropic(error: EverlearnError) -> tuple[int, Json]:
    """Status and Anthropic's error object, whose message is the only place for the name of a field."""
    status, body = describe(error)
    told = body["error"]
    message, param = told["message"], told["param"]
    if param and param not in message:
        message = f"{param}: {message}"
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": message}}


# To chat ---------------------------------------------------------------------------------------------------


def to_chat(request: CountTokensRequest) -> ChatRequest:
    """The chat request that asks an engine for the same. Raises InvalidInput."""
    chat: Json = {"model": request.model, "messages": list(_messages(request)), **_tools(request)}
    if request.output_config and (format := request.output_config.format):
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": format.schema_, "strict": True},
        }
    if isinstance(request, MessagesRequest):
        chat |= {
            "max_completion_tokens": request.max_tokens,
            "stop": request.stop_sequences or None,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stream": request.stream,
        }
    return validate(ChatRequest, {name: value for name, value in chat.items() if value is not None})


def to_tokenize(request: CountTokensRequest) -> TokenizeRequest:
    """The request that counts the tokens of the same prompt. Raises InvalidInput."""
    chat = to_chat(request).model_dump(exclude_unset=True)
    asked = {name: chat[name] for name in ("model", "messages", "tools", "tool_choice") if name in chat}
    return validate(TokenizeRequest, asked)


def _messages(request: CountTokensRequest) -> Iterator[Json]:
    if request.system:
        yield {"role": "system", "content": _text(request.system)}
    for turn in request.messages:
        if isinstance(turn.content, str):
            yield {"role": turn.role, "content": turn.content}
        elif isinstance(turn, UserTurn):
            yield from _user(turn.content)
        elif isinstance(turn, AssistantTurn):
            yield _assistant(turn.content)
        else:
            yield {"role": "system", "content": _text(turn.content)}


def _user(blocks: Sequence[TextBlock | ToolResultBlock]) -> Iterator[Json]:
    """Tool results become messages of their own; the user's text keeps its place between them."""
    if not blocks:
        yield {"role": "user", "content": ""}
    said: list[TextBlock] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            said.append(block)
            continue
        if said:
            yield {"role": "user", "content": _text(said)}
            said = []
        result = _text(block.content or "")
        yield {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": _failed(result) if block.is_error else result,
        }
    if said:
        yield {"role": "user", "content": _text(said)}


def _assistant(blocks: Sequence[TextBlock | ToolUseBlock]) -> Json:
    message: Json = {"role": "assistant"} if blocks else {"role": "assistant", "content": ""}
    if said := [block for block in blocks if isinstance(block, TextBlock)]:
        message["content"] = _text(said)
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return message


def _text(content: str | Sequence[TextBlock]) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": block.text} for block in content]


def _failed(result: str | list[Json]) -> str | list[Json]:
    """Chat has no field for a tool's failure, so the text says it."""
    mark = "Error: "
    return mark + result if isinstance(result, str) else [{"type": "text", "text": mark}, *result]


def _tools(request: CountTokensRequest) -> Json:
    told: Json = {}
    if request.tools:
        told["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "parameters": tool.input_schema,
                    **tool.model_dump(include={"description", "strict"}, exclude_none=True),
                },
            }
            for tool in request.tools
        ]
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice):
        told["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice:
        told["tool_choice"] = {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice and choice.disable_parallel_tool_use:
        told["parallel_tool_calls"] = False
    return told


# From chat -------------------------------------------------------------------------------------------------


class TokenCountTranslator(PassThrough):
    """Translates a count of tokens."""

    def whole(self, answer: bytes) -> bytes:
        with reading_answer():
            return json.dumps({"input_tokens": jiter.from_json(answer)["count"]}).encode()


class MessageTranslator:
    """Translates one chat answer, whole or streamed, into a message or its typed events."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"msg_{uuid4().hex}"
        self._begun = False
        self._blocks = 0
        self._open: int | str | None = None
        self._called: set[int] = set()
        self._stop: Json = {"stop_reason": None, "stop_sequence": None}
        self._usage: Json = {}

    def start(self, facts: AnswerFacts) -> None:
        """Keep the length of the prompt for a stream's first event."""
        details = {"cached_tokens": facts.cached_tokens}
        self._usage = {"prompt_tokens": facts.prompt_tokens or 0, "prompt_tokens_details": details}

    def whole(self, answer: bytes) -> bytes:
        """The message of a chat completion."""
        with reading_answer():
            completion = jiter.from_json(answer)
            choice = completion["choices"][0]
            said = choice["message"]
            content = [_text_block(said["content"])] if said.get("content") else []
            for index, call in enumerate(said.get("tool_calls") or ()):
                self._called.add(index)
                cut = choice.get("finish_reason") == "length"
                content.append(_tool_use(call["id"], call["function"], cut))
            self._end(choice)
            self._usage = completion.get("usage") or {}
        return json.dumps(self._message(content)).encode()

    def events(self, events: bytes) -> bytes:
        """The typed events of whole chat events."""
        out: list[Json] = []
        if not self._begun:
            self._begun = True
            out.append({"type": "message_start", "message": self._message([])})
        for event in events.split(b"\n\n"):
            if event == b"data: [DONE]":
                out += self._close()
                out.append(_message_delta(self._stop, self._usage))
                out.append({"type": "message_stop"})
            elif event.startswith(b"data: "):
                with reading_answer():
                    out += self._chunk(jiter.from_json(event[len(b"data: ") :]))
        return b"".join(map(_encode, out))

    def failure(self, error: EverlearnError) -> bytes:
        """The event that ends a stream which broke."""
        return _encode(describe_as_anthropic(error)[1])

    def _chunk(self, chunk: Json) -> Iterator[Json]:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                if self._open != "text":
                    yield from self._begin("text", _text_block(""))
                yield self._delta({"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            if choice.get("finish_reason"):
                self._end(choice)

    def _call(self, call: Json) -> Iterator[Json]:
        function, index = call.get("function") or {}, call.get("index", 0)
        if index not in self._called:
            self._called.add(index)
            id = call.get("id") or f"toolu_{uuid4().hex}"
            yield from self._begin(index, _tool_block(id, function["name"], {}))
        if self._open != index:
            raise MalformedAnswer("a call went on after another had begun")
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _begin(self, what: int | str, block: Json) -> Iterator[Json]:
        yield from self._close()
        self._open = what
        yield {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _close(self) -> Iterator[Json]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._blocks}
            self._blocks += 1
            self._open = None

    def _end(self, choice: Json) -> None:
        """Our engines say which stop sequence ended the answer; where another does not, it ends as a turn does."""
        finish, sequence = choice.get("finish_reason"), choice.get("stop_reason")
        reason = STOP_REASONS.get(finish, "tool_use" if self._called else "end_turn")
        if reason == "end_turn" and isinstance(sequence, str):
            self._stop = {"stop_reason": "stop_sequence", "stop_sequence": sequence}
        else:
            self._stop = {"stop_reason": reason, "stop_sequence": None}

    def _message(self, content: list[Json]) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **self._stop,
            "stop_details": None,
            "container": None,
            "usage": usage(self._usage)
            | {
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "service_tier": "standard",
                "inference_geo": None,
            },
        }


def _tool_use(id: str, function: Json, cut: bool) -> Json:
    """The tool_use block of a call; where the answer was cut, its input holds what came."""
    arguments = (function["arguments"] or "{}").encode()
    given = jiter.from_json(arguments, partial_mode="trailing-strings" if cut else False)
    return _tool_block(id, function["name"], given)


def _tool_block(id: str, name: str, given: Json) -> Json:
    return {"type": "tool_use", "id": id, "name": name, "input": given, "caller": {"type": "direct"}}


def _text_block(text: str) -> Json:
    return {"type": "text", "text": text, "citations": None}


def _message_delta(stop: Json, counted: Json) -> Json:
    delta = stop | {"stop_details": None, "container": None}
    return {"type": "message_delta", "delta": delta, "usage": usage(counted)}


def usage(counted: Json) -> Json:
    """Anthropic's usage, which counts cached tokens separately."""
    cached = (counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": counted.get("prompt_tokens", 0) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counted.get("completion_tokens", 0),
        "server_tool_use": None,
    }


def _encode(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
