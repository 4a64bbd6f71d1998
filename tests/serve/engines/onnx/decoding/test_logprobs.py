"""Log-probabilities of answers and of prompts, as clients that score models read them."""

from typing import Any

import httpx
import numpy as np
import pytest

from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.requests import RequestReader

JAPANESE = "日本の首都は東京です。フランスの首都は"
PROSE = "The old bridge over the river was built of stone, and it has stood for three hundred years. " * 5


def complete(engine: httpx.Client, status: int = 200, **body: Any) -> Any:
    answer = engine.post("/v1/completions", json={"model": "smollm2", "temperature": 0} | body)
    assert answer.status_code == status, answer.text
    return answer.json()["choices"][0] if status == 200 else answer.json()["error"]


def raw(name: str) -> bytes:
    """The bytes that a token's name stands for."""
    if not name.startswith("bytes:"):
        return name.encode()
    return bytes(int(byte, 16) for byte in name.removeprefix("bytes:").split("\\x")[1:])


def test_offsets_lie_in_the_text_and_every_token_has_as_many_others_as_asked(engine: httpx.Client) -> None:
    choice = complete(engine, prompt=JAPANESE, max_tokens=16, logprobs=4)
    logprobs, text = choice["logprobs"], choice["text"]
    assert b"".join(map(raw, logprobs["tokens"])).decode("utf-8", "replace") == text
    assert any(name.startswith("bytes:") for name in logprobs["tokens"])
    assert all(len(top) == 4 for top in logprobs["top_logprobs"])
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert 0 <= logprobs["text_offset"][-1] < len(text)
    for name, place in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert name.startswith("bytes:") or text[place:].startswith(name)


def test_offsets_lie_in_a_text_that_a_stop_string_cut(engine: httpx.Client) -> None:
    said = complete(engine, prompt="One, two, three,", max_tokens=24)["text"]
    choice = complete(engine, prompt="One, two, three,", max_tokens=24, logprobs=1, stop=[said[9:14]])
    assert choice["finish_reason"] == "stop"
    assert max(choice["logprobs"]["text_offset"]) <= len(choice["text"])


def test_a_chats_half_characters_have_names_and_bytes(engine: httpx.Client) -> None:
    body = {
        "model": "smollm2", "messages": [{"role": "user", "content": "Write: 日本の首都は東京です。"}],
        "temperature": 0, "max_tokens": 24, "logprobs": True, "top_logprobs": 3,
        "response_format": {"type": "grammar", "grammar": 'start: "日本の首都は東京です。"'},
    }  # fmt: skip
    choice = engine.post("/v1/chat/completions", json=body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == choice["message"]["content"]
    assert all(raw(one["token"]) == bytes(one["bytes"]) for one in content)
    assert all(len(one["top_logprobs"]) == 3 for one in content)


def test_a_prompt_is_scored_as_its_tokens_would_be_generated(
    engine: httpx.Client, decoder: Decoder, reader: RequestReader
) -> None:
    choice = complete(engine, prompt=PROSE, max_tokens=0, echo=True, logprobs=2)
    assert choice["text"] == PROSE and choice["finish_reason"] == "length"
    scored = choice["logprobs"]
    tokens = reader.codec.encode(PROSE)
    assert len(tokens) == len(scored["tokens"]) == len(scored["text_offset"]) > 80
    assert scored["token_logprobs"][0] is None and scored["top_logprobs"][0] is None
    assert all(len(top) == 2 for top in scored["top_logprobs"][1:])
    for at in (1, 20, 63, 64, 65, len(tokens) - 1):
        logits = decoder.prefill(0, np.array(tokens[:at]), 0).astype(np.float64)
        expected = logits[tokens[at]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert scored["token_logprobs"][at] == pytest.approx(expected, abs=0.02)
    decoder.release(0)


def test_what_lm_eval_sends_comes_back_in_the_shape_that_it_reads(
    engine: httpx.Client, reader: RequestReader
) -> None:
    likely = complete(engine, prompt="Paris is the capital of", max_tokens=1)["text"]
    context, continuation = (reader.codec.encode(text) for text in ("Paris is the capital of", likely + "."))
    body = {
        "prompt": [context + continuation] * 2,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = engine.post("/v1/completions", json={"model": "smollm2", "temperature": 0} | body).json()
    assert answer["usage"]["prompt_tokens"] == 2 * len(context + continuation)
    first, second = (choice["logprobs"] for choice in answer["choices"])
    assert first == second
    assert len(first["token_logprobs"]) == len(context + continuation) + 1
    scores = first["token_logprobs"][len(context) : -1]
    greedy = [
        name == max(top, key=top.__getitem__)
        for name, top in zip(first["tokens"], first["top_logprobs"], strict=True)
        if top
    ]
    assert all(score < 0 for score in scores) and scores[0] > -5
    assert greedy[len(context) - 1]


def test_an_end_that_is_generated_counts_where_a_prompt_is_scored(engine: httpx.Client) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"
    choice = complete(engine, prompt=prompt, max_tokens=1, logprobs=1, echo=True, logit_bias={"2": 100})
    assert choice["logprobs"]["tokens"][-1] == "<|im_end|>" and choice["text"] == prompt
    assert choice["finish_reason"] == "stop"


def test_a_streamed_echo_begins_with_the_prompt(engine: httpx.Client) -> None:
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 3, "echo": True, "stream": True}
    with engine.stream("POST", "/v1/completions", json=body) as response:
        first = next(line for line in response.iter_lines() if line)
    assert '"text":"One, two,"' in first


def test_nothing_at_all_is_no_request(engine: httpx.Client) -> None:
    error = complete(engine, 400, prompt="One", max_tokens=0)
    assert error["param"] == "max_tokens" and "echo" in error["message"]
