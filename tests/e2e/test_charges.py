"""Who leaves before the answer is there pays for what was read and generated, on both kinds of engine."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from everlearn.registry.database import open_database
from everlearn.registry.keys import list_keys
from everlearn.registry.usage import Used, sum_usage
from everlearn.settings import Settings
from tests.e2e.conftest import VLLM
from tests.support.serve.supervised import Supervised, eventually

pytestmark = pytest.mark.slow

PROMPT = " ".join(f"Word number {n}." for n in range(150)) + " Count to a million."


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_left_is_counted_for_its_key(
    server: Supervised,
    settings_of_server: Settings,
    new_key: Callable[..., str],
    model: str,
    tokenizer: Tokenizer,
    stream: bool,
) -> None:
    name = f"left-{model}-{stream}"
    secret = new_key(name, tokens_per_minute=600)
    tokens = len(tokenizer.encode(PROMPT, add_special_tokens=False).ids)
    assert tokens > 600
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4000, "stream": stream,
        "temperature": 0, "logit_bias": {"2": -100},
    }  # fmt: skip
    headers = {"authorization": f"Bearer {secret}"}
    url = f"{server.url}/v1/chat/completions"
    with httpx.Client(timeout=httpx.Timeout(60, read=60 if stream else 12)) as leaving:
        if stream:
            with leaving.stream("POST", url, json=body, headers=headers) as answer:
                for _, _ in zip(answer.iter_lines(), range(20), strict=False):
                    pass
        else:
            with pytest.raises(httpx.ReadTimeout):
                leaving.post(url, json=body, headers=headers)
    db = open_database(settings_of_server)
    key = next(key for key in list_keys(db) if key.name == name)

    def found() -> list[Used]:
        return [one for one in sum_usage(db, "2000-01-01", "2999-12-31") if one.what == key.id]

    used = eventually(found)[0]
    counted = (
        stream or model != VLLM
    )  # of a whole answer vLLM tells nothing before its end: bytes are all there is
    assert used.failed == 1 and used.prompt_tokens > tokens / 2, used
    assert abs(used.prompt_tokens - tokens) < 60 or not counted, used
    assert 5 <= used.completion_tokens <= 4000
    time.sleep(0.2)
    again = httpx.post(url, json=body | {"max_tokens": 1}, headers=headers, timeout=60)
    assert again.status_code == 429 and "tokens per minute is spent" in again.json()["error"]["message"]
