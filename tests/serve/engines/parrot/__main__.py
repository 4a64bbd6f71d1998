"""An engine in one file: it repeats what it is told. CONTRIBUTING.md adds it; `serve.engines` says what it must do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from everlearn.bundles.bundle import open_bundle
from serve.engines.parent import end_with_parent

CONTEXT_TOKENS = 4096


def main() -> None:
    """Open the bundle, then serve until SIGTERM or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="parrot")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--uds", required=True)
    arguments = parser.parse_args()
    end_with_parent()
    open_bundle(arguments.bundle)  # raises where a file is not the one that was registered
    routes = [
        Route("/health", health),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    uvicorn.run(Starlette(routes=routes), uds=arguments.uds, log_level="warning")


async def health(request: Request) -> Response:
    return JSONResponse({"status": "ready", "context": CONTEXT_TOKENS})


async def complete(request: Request) -> Response:
    body = await request.json()
    choice = {"index": 0, "text": body["prompt"], "logprobs": None, "finish_reason": "stop"}
    return JSONResponse(answer(body, "text_completion", [choice], usage(body["prompt"])))


async def chat(request: Request) -> Response:
    body = await request.json()
    text = body["messages"][-1]["content"]
    if body.get("stream"):
        return StreamingResponse(events(body, text), media_type="text/event-stream")
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return JSONResponse(answer(body, "chat.completion", [choice], usage(text)))


def events(body: dict[str, Any], text: str) -> Iterator[bytes]:
    """A word per event; then why the answer ended, and what was used if the client asks for it."""
    parts = [({"role": "assistant", "content": ""}, None)]
    parts += [({"content": f"{word} "}, None) for word in text.split()]
    for delta, finish in [*parts, ({}, "stop")]:
        yield event(
            answer(body, "chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish}])
        )
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event(answer(body, "chat.completion.chunk", [], usage(text)))
    yield b"data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def answer(
    body: dict[str, Any], kind: str, choices: list[Any], used: dict[str, int] | None = None
) -> dict[str, Any]:
    told = {"usage": used} if used else {}
    return {"id": "parrot", "object": kind, "created": 0, "model": body["model"], "choices": choices, **told}


def usage(text: str) -> dict[str, int]:
    words = len(text.split())
    return {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words}


if __name__ == "__main__":
    main()
