"""vLLM's answers with their calls read: the same as the ONNX engine would give, however the text is cut."""

import asyncio
import json
from functools import partial
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serve.engines.calls import Reading
from serve.engines.vllm.answers import CallReader

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def passed(messages: list[dict[str, Any]], stop: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What a client is sent of what vLLM sends."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def go() -> None:
        reader = CallReader(send, partial(Reading, stop, ["weather"]))
        for message in messages:
            await reader(message)

    asyncio.run(go())
    return sent


def start(kind: bytes, status: int = 200, length: int = 0) -> dict[str, Any]:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % length)][: 1 + bool(length)]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


@given(
    text=st.sampled_from([f"Let me see.\n{CALL}", CALL, "<div>", f"x {CALL}\n{CALL}", f"{CALL[:30]}", f"a stop {CALL}"]),
    cuts=st.lists(st.integers(1, 150), max_size=8),
    network=st.integers(10, 400),
    finish=st.sampled_from(["stop", "length"]),
)  # fmt: skip
def test_streamed_and_whole_answers_agree(text: str, cuts: list[int], network: int, finish: str) -> None:
    whole_body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    }
    data = json.dumps(whole_body).encode()
    head, sent = passed(
        [start(b"application/json", length=len(data)), body(data[:9], True), body(data[9:])], ("stop",)
    )
    assert int(dict(head["headers"])[b"content-length"]) == len(sent["body"])
    whole = json.loads(sent["body"])["choices"][0]

    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(borders)]
    stream = chunk({"role": "assistant", "content": ""}) + b"".join(
        chunk({"content": piece}) for piece in pieces[:-1]
    )
    stream += (
        chunk({"content": pieces[-1]}, finish) + b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n'
    )
    packets = [stream[at : at + network] for at in range(0, len(stream), network)]
    answer = passed(
        [start(b"text/event-stream; charset=utf-8"), *(body(packet, True) for packet in packets), body(b"")],
        ("stop",),
    )
    events = b"".join(message["body"] for message in answer[1:]).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""] and b'"usage"' in events[-3]
    content, arguments, names, end = "", [], [], None
    for event in events[:-3]:
        [choice] = json.loads(event[6:])["choices"]
        content += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls", []):
            if "name" in part["function"]:
                names.append(part["function"]["name"])
                arguments.append("")
            arguments[part["index"]] += part["function"]["arguments"]
        end = end or choice["finish_reason"]
    calls = [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert (content, end) == (whole["message"]["content"] or "", whole["finish_reason"])
    assert names == [call["name"] for call in calls]
    assert arguments == [call["arguments"] for call in calls]


def test_an_error_passes_as_it_is() -> None:
    message = b'{"error": {"message": "no"}}'
    head, sent = passed([start(b"application/json", 400, len(message)), body(message)])
    assert (head["status"], sent["body"]) == (400, message)
    event = b'data: {"error": {"message": "no"}}\n\n'
    assert passed([start(b"text/event-stream"), body(event, True), body(b"")])[1]["body"] == event


def test_the_stop_string_that_ended_an_answer_is_told_as_vllm_tells_it() -> None:
    choice = {"index": 0, "message": {"content": "one stop two"}, "finish_reason": "stop"}
    data = json.dumps({"choices": [choice]}).encode()
    _, sent = passed([start(b"application/json"), body(data)], ("stop",))
    assert json.loads(sent["body"])["choices"][0]["stop_reason"] == "stop"
    stream = chunk({"content": "one st"}) + chunk({"content": "op two"}, "stop") + b"data: [DONE]\n\n"
    answer = passed([start(b"text/event-stream"), body(stream, True), body(b"")], ("stop",))
    *_, last, _, _ = b"".join(message["body"] for message in answer[1:]).split(b"\n\n")
    assert json.loads(last[6:])["choices"][0]["stop_reason"] == "stop"
