"""Every refusal reaches the stock `openai` client as the exception made for it."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Served
from tests.support.serve.supervised import Supervised

pytestmark = pytest.mark.slow

LONG: list[Any] = [{"role": "user", "content": "word " * 50_000}]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def connect(server: Supervised, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_a_wrong_key_is_an_authentication_error(server: Supervised) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        connect(server, "el-wrong").chat.completions.create(model="smollm2", messages=HELLO)
    assert refused.value.code == "invalid_api_key"


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-17") as refused:
        client.chat.completions.create(model="gpt-17", messages=HELLO)
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("temperature", {"temperature": 3}),
        ("max_tokens", {"max_tokens": 0}),
        ("logit_bias", {"logit_bias": {"999999": 1}}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 50}),
        ("n", {"n": 1000}),
        ("audio", {"extra_body": {"audio": {"voice": "x"}}}),
        ("tempratur", {"extra_body": {"tempratur": 1}}),
    ],
)
def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    served: Served, param: str, options: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        served.chat(HELLO, **options)
    assert param in f"{refused.value.param} {refused.value.message}"


@pytest.mark.parametrize("options", [{"messages": LONG}, {"max_tokens": 10**6}], ids=["prompt", "answer"])
def test_what_does_not_fit_the_context_is_a_bad_request(served: Served, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        served.chat(**options)
    assert "8192" in refused.value.message


def test_a_spent_limit_is_a_rate_limit_error(server: Supervised, new_key: Callable[..., str]) -> None:
    limited = connect(server, new_key("limited", requests_per_minute=2))
    for _ in range(2):
        limited.chat.completions.create(model="smollm2", messages=HELLO, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as refused:
        limited.chat.completions.create(model="smollm2", messages=HELLO, max_tokens=1)
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_key_for_another_model_is_a_permission_error(
    server: Supervised, new_key: Callable[..., str]
) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        connect(server, new_key("embedder", models=["minilm"])).chat.completions.create(
            model="smollm2", messages=HELLO
        )
