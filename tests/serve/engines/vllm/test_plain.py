"""Of vLLM's answers OpenAI's fields come through, and the head tells what the first words say."""

import asyncio
import json
from typing import Any

from serve.answer_facts import AnswerFacts, facts_in
from serve.engines.vllm.plain import Plain

SAMPLING = {"temperature": 0.2, "top_p": 0.9}
COUNTED = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}


def passed(kind: str, *parts: bytes, status: int = 200) -> tuple[AnswerFacts, int, list[bytes]]:
    """What the head tells, its length if it has one, and the bodies sent."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def go() -> None:
        plain = Plain(send, SAMPLING)
        headers = [(b"content-type", kind.encode())]
        await plain({"type": "http.response.start", "status": status, "headers": headers})
        assert sent == []
        for part in parts:
            await plain({"type": "http.response.body", "body": part, "more_body": True})
        await plain({"type": "http.response.body", "body": b""})

    asyncio.run(go())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return facts_in(headers), int(headers.get("content-length", 0)), [message["body"] for message in sent[1:]]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_the_id_of_the_token_that_ended_an_answer_is_not_shown_as_a_stop_string() -> None:
    for reason in (151645, None):
        choice = {"index": 0, "finish_reason": "stop", "stop_reason": reason, "text": "a"}
        answer = json.dumps({"id": "1", "choices": [choice], "usage": COUNTED}).encode()
        _, _, (body, *_) = passed("application/json", answer)
        assert "stop_reason" not in json.loads(body)["choices"][0]


def test_a_whole_answer_has_openais_fields_alone() -> None:
    choice = {"index": 0, "finish_reason": "stop", "stop_reason": None, "token_ids": None}
    message = {"role": "assistant", "content": "x", "reasoning": None}
    counted = COUNTED | {"prompt_tokens_details": {"cached_tokens": 4, "created_cache_tokens": 5}}
    answer = {"id": "c", "choices": [choice | {"message": message}], "usage": counted, "metrics": None}
    data = json.dumps(answer).encode()
    told, length, (body,) = passed("application/json", data[:20], data[20:])
    assert (told, length) == (AnswerFacts(9, 4, **SAMPLING), len(body))
    assert json.loads(body) == {
        "id": "c",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "x", "annotations": []},
            },
        ],
        "usage": COUNTED | {"prompt_tokens_details": {"cached_tokens": 4}},
    }


def test_a_stream_counts_in_its_head_and_at_its_end() -> None:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": COUNTED}
    second = {"choices": [{"index": 0, "delta": {"content": "x"}, "stop_reason": "END"}], "usage": COUNTED}
    last = {"choices": [], "usage": COUNTED}
    told, _, bodies = passed(
        "text/event-stream; charset=utf-8", event(first), event(second), event(last) + b"data: [DONE]\n\n"
    )
    assert told == AnswerFacts(9, 0, **SAMPLING)
    events = b"".join(bodies).split(b"\n\n")
    assert [json.loads(one[6:]) for one in events[:3]] == [
        {"choices": first["choices"]},
        {"choices": second["choices"]},
        last | {"usage": COUNTED | {"prompt_tokens_details": {"cached_tokens": 0}}},
    ]
    assert events[3:] == [b"data: [DONE]", b""]


def test_errors_have_openais_types_before_and_inside_a_stream() -> None:
    flaw = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}
    expected = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
    _, _, (body,) = passed("application/json", json.dumps(flaw).encode(), status=400)
    assert json.loads(body) == expected
    _, _, (streamed, _) = passed("text/event-stream", event(flaw))
    assert json.loads(streamed.removeprefix(b"data: ")) == expected
    _, _, (nonsense,) = passed("text/plain", b"Traceback", status=500)
    assert json.loads(nonsense)["error"]["message"] == "the engine failed"
