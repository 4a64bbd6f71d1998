"""OpenAI's responses as chat completions, and back.

Stateless: nothing is stored and the whole conversation comes with each request. Text and function tools.
"""

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import jiter
from pydantic import BaseModel

from everlearn.errors import EverlearnError
from serve.answer_facts import AnswerFacts
from serve.gateway.formats.translator import reading_answer
from serve.gateway.http.failures import describe
from serve.protocol.chat import ChatRequest
from serve.protocol.parsing import validate
from serve.protocol.responses import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputTextPart,
    ResponseSchemaFormat,
    ResponsesRequest,
)

Json = dict[str, Any]

FAILURES = {429: "rate_limit_exceeded"}
"""Error codes by HTTP status: the Responses API has its own."""

TOOL = {"description": None, "parameters": None, "strict": False}


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """The chat request that asks an engine for the same. Raises InvalidInput."""
    chat: Json = {
        "model": request.model,
        "messages": list(_messages(request)),
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "service_tier": request.service_tier,
        "parallel_tool_calls": request.parallel_tool_calls,
        "stream": request.stream,
    }
    if request.text and request.text.format:
        chat["response_format"] = _response_format(request.text.format)
    if request.tools:
        chat["tools"] = [
            {"type": "function", "function": _given(tool, exclude={"type"})} for tool in request.tools
        ]
    if isinstance(request.tool_choice, str):
        chat["tool_choice"] = request.tool_choice
    elif request.tool_choice:
        chat["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
    return validate(ChatRequest, {name: value for name, value in chat.items() if value is not None})


def _messages(request: ResponsesRequest) -> Iterator[Json]:
    if request.instructions:
        yield {"role": "system", "content": request.instructions}
    if isinstance(request.input, str):
        yield {"role": "user", "content": request.input}
        return
    pending: Json | None = None
    for item in request.input:
        if isinstance(item, FunctionCallItem):
            pending = pending or {"role": "assistant"}
            pending.setdefault("tool_calls", []).append(_tool_call(item))
            continue
        if pending:
            yield pending
            pending = None
        if isinstance(item, FunctionCallOutputItem):
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
        elif item.role == "assistant":
            pending = {"role": "assistant", "content": _content(item.content)}
        else:
            yield {"role": item.role, "content": _content(item.content)}
    if pending:
        yield pending


def _tool_call(item: FunctionCallItem) -> Json:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _content(content: str | list[InputTextPart]) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part.text} for part in content]


def _response_format(format: BaseModel) -> Json:
    if isinstance(format, ResponseSchemaFormat):
        return {"type": "json_schema", "json_schema": _given(format, exclude={"type"})}
    return _given(format)


def _given(model: BaseModel, exclude: set[str] | None = None) -> Json:
    return model.model_dump(exclude_unset=True, exclude=exclude)


class ResponseTranslator:
    """Translates one chat answer, whole or streamed, into a response object or its typed events."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._id = f"resp_{uuid4().hex}"
        self._created_at = int(time.time())
        self._output: list[Json] = []
        self._open: Json | None = None
        self._calls: dict[int, Json] = {}
        self._finish: str | None = None
        self._usage: Json | None = None
        self._sequence = 0
        self._begun = False
        self._facts = AnswerFacts()

    def start(self, facts: AnswerFacts) -> None:
        """Keep what the answer is sampled with, where the client left that to the model."""
        self._facts = facts

    def whole(self, answer: bytes) -> bytes:
        """The response object of a chat completion."""
        with reading_answer():
            self._take(jiter.from_json(answer))
        return json.dumps(self._response(self._status())).encode()

    def _take(self, completion: Json) -> None:
        choice = completion["choices"][0]
        message = choice["message"]
        self._finish = choice.get("finish_reason")
        self._usage = completion.get("usage")
        if message.get("content") or not message.get("tool_calls"):
            self._output.append(_message_item(message.get("content") or "", "completed"))
        for call in message.get("tool_calls") or ():
            item = _call_item(call["id"], call["function"]["name"], call["function"]["arguments"])
            self._output.append(item | {"status": "completed"})
        self._output[-1]["status"] = self._status()

    def events(self, events: bytes) -> bytes:
        """The typed events of whole chat events."""
        out: list[Json] = []
        if not self._begun:
            self._begun = True
            out.append({"type": "response.created", "response": self._response("in_progress")})
            out.append({"type": "response.in_progress", "response": self._response("in_progress")})
        for event in events.split(b"\n\n"):
            if event == b"data: [DONE]":
                out += self._end()
            elif event.startswith(b"data: "):
                with reading_answer():
                    out += self._chunk(jiter.from_json(event[len(b"data: ") :]))
        return b"".join(map(self._encode, out))

    def failure(self, error: EverlearnError) -> bytes:
        """The event that ends a stream which broke."""
        body = describe(error)[1]["error"]
        problem = {"code": FAILURES.get(error.status, "server_error"), "message": body["message"]}
        for item in self._output:
            item["status"] = "incomplete" if item["status"] == "in_progress" else item["status"]
        return self._encode(
            {"type": "response.failed", "response": self._response("failed") | {"error": problem}}
        )

    def _chunk(self, chunk: Json) -> Iterator[Json]:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                yield from self._text(delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._finish = choice.get("finish_reason") or self._finish

    def _text(self, text: str) -> Iterator[Json]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close()
            yield self._add(_message_item("", "in_progress"))
            yield self._at("response.content_part.added", content_index=0, part=_text_part(""))
        assert self._open is not None
        self._open["content"][0]["text"] += text
        yield self._at("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _call(self, call: Json) -> Iterator[Json]:
        function = call.get("function") or {}
        if call.get("index", 0) not in self._calls:
            yield from self._close()
            item = _call_item(call.get("id") or f"call_{uuid4().hex}", function.get("name") or "", "")
            self._calls[call.get("index", 0)] = item
            yield self._add(item)
        item = self._calls[call.get("index", 0)]
        if arguments := function.get("arguments"):
            item["arguments"] += arguments
            yield self._event(
                "response.function_call_arguments.delta",
                item_id=item["id"], output_index=self._output.index(item), delta=arguments,
            )  # fmt: skip

    def _add(self, item: Json) -> Json:
        self._open = item
        self._output.append(item)
        shown = item | ({"content": []} if item["type"] == "message" else {})
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=shown)

    def _close(self) -> Iterator[Json]:
        item = self._open
        if item is None:
            return
        item["status"] = self._status()
        if item["type"] == "message":
            text = item["content"][0]["text"]
            yield self._at("response.output_text.done", content_index=0, text=text, logprobs=[])
            yield self._at("response.content_part.done", content_index=0, part=_text_part(text))
        else:
            yield self._at("response.function_call_arguments.done", arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=self._output.index(item), item=dict(item))
        self._open = None

    def _end(self) -> Iterator[Json]:
        if not self._output:
            yield from self._text("")
        yield from self._close()
        status = self._status()
        yield {"type": f"response.{status}", "response": self._response(status)}

    def _at(self, type: str, **fields: Any) -> Json:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": self._output.index(self._open)}
        return self._event(type, **place, **fields)

    def _event(self, type: str, **fields: Any) -> Json:
        return {"type": type, **fields}

    def _encode(self, event: Json) -> bytes:
        data = json.dumps(event | {"sequence_number": self._sequence})
        self._sequence += 1
        return f"event: {event['type']}\ndata: {data}\n\n".encode()

    def _status(self) -> str:
        """The status of the response and of its last item; earlier items are complete."""
        return "incomplete" if self._finish in ("length", "content_filter") else "completed"

    def _response(self, status: str) -> Json:
        request = self._request
        reason = {"length": "max_output_tokens"}.get(self._finish or "", self._finish)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "model": request.model,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "presence_penalty": request.presence_penalty or 0.0,
            "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": request.service_tier if request.service_tier == "flex" else "default",
            "store": False,
            "temperature": _first_of(request.temperature, self._facts.temperature),
            "text": {"format": _format(request)},
            "tool_choice": _choice(request),
            "tools": [TOOL | _given(tool) for tool in request.tools or ()],
            "top_logprobs": 0,
            "top_p": _first_of(request.top_p, self._facts.top_p),
            "truncation": "disabled",
            "usage": _usage(self._usage) if status in ("completed", "incomplete") else None,
            "metadata": request.metadata or {},
        }


def _first_of(*known: float | None) -> float:
    """The first value given; OpenAI's default where there is none."""
    return next((value for value in known if value is not None), 1.0)


def _format(request: ResponsesRequest) -> Json:
    format = request.text.format if request.text else None
    if isinstance(format, ResponseSchemaFormat):
        return {"description": None, "strict": False} | _given(format)
    return {"type": format.type if format else "text"}


def _choice(request: ResponsesRequest) -> str | Json:
    choice = request.tool_choice
    return _given(choice) if isinstance(choice, BaseModel) else choice or "auto"


def _message_item(text: str, status: str) -> Json:
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_text_part(text)],
    }


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call_id: str, name: str, arguments: str) -> Json:
    return {
        "id": f"fc_{uuid4().hex}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def _usage(usage: Json | None) -> Json | None:
    if usage is None:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.get("total_tokens", 0),
    }
