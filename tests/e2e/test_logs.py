"""What people ask and are answered is in no log of the server: not the gateway's, the engines', or the batches'."""

import json
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.support.serve.supervised import Supervised, eventually

pytestmark = pytest.mark.slow

WORD = "zanzibarquestion"
ANSWER = "repeatafterme"
ASKED: Any = [{"role": "user", "content": f"{WORD}: say {ANSWER}"}]


def test_no_log_holds_a_prompt_an_answer_or_a_secret(
    server: Supervised, client: openai.OpenAI, key: str, model: str
) -> None:
    said: Any = {"model": model, "messages": ASKED, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**said)
    list(client.chat.completions.create(**said, stream=True))
    client.completions.create(model=model, prompt=WORD, max_tokens=4)
    client.responses.create(model=model, input=WORD, max_output_tokens=16)
    client.embeddings.create(model="minilm", input=WORD)
    for path, body in (
        ("/v1/messages", said),
        ("/v1/messages", said | {"stream": True}),
        ("/v1/messages", said | {"system": 5, "metadata": {"user_id": WORD}}),
        ("/v1/messages/count_tokens", {"model": model, "messages": ASKED}),
        ("/tokenize", {"model": model, "prompt": WORD}),
        ("/detokenize", {"model": model, "tokens": [5, 10**8]}),
        ("/v1/chat/completions", said | {WORD: 1}),
        ("/v1/chat/completions", said | {"tools": [{"type": "function", "function": {"name": WORD * 9}}]}),
        ("/v1/chat/completions", said | {"model": WORD}),
        (f"/v1/{WORD}", said),
    ):
        httpx.post(server.url + path, json=body, headers={"x-api-key": key}, timeout=60)
    httpx.post(f"{server.url}/v1/messages", json=said, headers={"x-api-key": f"el-{WORD}"}, timeout=60)
    lines = [
        {"custom_id": f"{WORD}-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate((said, said | {"model": WORD[:4]}, said | {"logit_bias": {"99999999": 1}}))
    ]
    file = client.files.create(
        file=(f"{WORD}.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch"
    )
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"m": WORD}
    )
    eventually(lambda: (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed >= 1)
    with suppress(openai.BadRequestError):  # it may be done already
        client.batches.cancel(batch.id)
    answer = whole.choices[0].message.content or ""
    for secret in (WORD, ANSWER, key, key[3:], answer):
        assert len(secret) > 8 and secret not in server.output, secret
    for route in ("/v1/messages", "/tokenize", "/v1/batches"):
        assert f'"{route}"' in server.output, "the requests themselves are in the log"
