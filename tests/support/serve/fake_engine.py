"""A small engine of the tests: the HTTP of a real one, and misbehaviour on request.

    python tests/support/serve/fake_engine.py --bundle DIR --model NAME --version N --uds PATH

It answers a chat with the words of the last message. The message may begin with a command: `/crash` dies after
two words, `/hang` never answers anything again, `/slow` takes a second per word, `/say {"json": "string"}` says
exactly that, `/body` says the request's body, `/version` says the version forty times in a second, `/until PATH`
says `on` until there is a file. If the file that FAKE_ENGINE_MISBEHAVE names exists and holds `CODE MESSAGE`, it dies
at its start; with `-VERSION` after that name, that version alone.

The `architecture` of its bundle makes a version of it bad: `dies-at-load`, `hangs-at-load`, `hangs-in-warm-up`,
`dies-in-warm-up`, `loops`, `empty`, `nan`, `refuses`, `slow-to-load`.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

ARCHITECTURE = "fake"
VERSION = "0"


def reply(body: dict[str, Any]) -> tuple[list[str], float]:
    """The pieces to stream, and the pause between them in seconds."""
    text = body["messages"][-1]["content"]
    command, _, rest = text.partition(" ")
    if command == "/version":
        return [f"v{VERSION} "] * 40, 0.025
    if command == "/until":
        return ["end"], 0
    if command == "/body":
        return [json.dumps(body)], 0
    if command == "/say":
        said = json.loads(rest)
        return [said[i : i + 4] for i in range(0, len(said), 4)], 0.002
    if command in ("/crash", "/slow"):
        return [f"{word} " for word in rest.split()], 1.0 if command == "/slow" else 0.05
    return [f"{word} " for word in text.split()], 0.01


def chunk(model: str, choices: list[dict[str, object]], **more: object) -> bytes:
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return b"data: " + json.dumps({**event, "choices": choices, **more}).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    model = body["model"]
    text = body["messages"][-1]["content"]
    if text.startswith("/hang"):
        time.sleep(3600)  # noqa: ASYNC251
    pieces, pause_s = reply(body)
    usage = {"prompt_tokens": 1, "completion_tokens": len(pieces), "total_tokens": 1 + len(pieces)}
    if not body.get("stream"):
        if text.startswith("/crash"):
            os._exit(1)
        await asyncio.sleep(pause_s * len(pieces))
        message = {"role": "assistant", "content": "".join(pieces)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": choices,
                "usage": usage,
            }
        )
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while text.startswith("/until ") and not Path(text.split()[1]).exists():
        await response.write(chunk(model, [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}]))
        await asyncio.sleep(0.1)
    for index, piece in enumerate(pieces):
        if text.startswith("/crash") and index == 2:
            os._exit(1)
        delta = {"role": "assistant", "content": piece} if index == 0 else {"content": piece}
        await response.write(chunk(model, [{"index": 0, "delta": delta, "finish_reason": None}]))
        await asyncio.sleep(pause_s)
    await response.write(chunk(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(chunk(model, [], usage=usage))
    await response.write(b"data: [DONE]\n\n")
    return response


async def complete(request: web.Request) -> web.Response:
    """The supervisor's warm-up comes here, since a fake bundle has no chat template."""
    body = await request.json()
    if ARCHITECTURE == "hangs-in-warm-up":
        await asyncio.sleep(3600)
    if ARCHITECTURE == "dies-in-warm-up":
        os._exit(1)
    if ARCHITECTURE == "refuses":
        error = {
            "message": "the weights do not fit the graph",
            "type": "server_error",
            "code": None,
            "param": None,
        }
        return web.json_response({"error": error}, status=500)
    tokens = {"loops": ["the "] * 16, "empty": []}.get(ARCHITECTURE, [f"{n} " for n in range(16)])
    logprobs = [float("nan") if ARCHITECTURE == "nan" else -1.0] * len(tokens)
    choice = {
        "index": 0, "text": "".join(tokens), "finish_reason": "length",
        "logprobs": {"tokens": tokens, "token_logprobs": logprobs},
    }  # fmt: skip
    return web.json_response({"object": "text_completion", "model": body["model"], "choices": [choice]})


async def health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "pid": os.getpid(), "context": 2048})


def main() -> None:
    global ARCHITECTURE, VERSION
    parser = argparse.ArgumentParser()
    for option in ("--bundle", "--model", "--version", "--uds"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    misbehave = os.environ.get("FAKE_ENGINE_MISBEHAVE", "/nonexistent")
    for file in (Path(misbehave), Path(f"{misbehave}-{options.version}")):
        if file.exists():
            code, _, message = file.read_text().partition(" ")
            print(message, file=sys.stderr)
            raise SystemExit(int(code))
    VERSION = options.version
    ARCHITECTURE = json.loads((Path(options.bundle) / "bundle.json").read_text())["architecture"]
    if ARCHITECTURE == "dies-at-load":
        print("no room for the weights", file=sys.stderr)
        raise SystemExit(1)
    if ARCHITECTURE == "hangs-at-load":
        time.sleep(3600)
    if ARCHITECTURE == "slow-to-load":
        time.sleep(3)
    app = web.Application()
    app.add_routes([web.post("/v1/completions", complete), web.post("/v1/chat/completions", chat)])
    app.add_routes([web.get("/health", health)])
    web.run_app(app, path=options.uds, print=None, handle_signals=True)


if __name__ == "__main__":
    main()
