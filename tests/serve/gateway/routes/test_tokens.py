"""/tokenize and /detokenize reach the engine as vLLM spells them, through the same door as answers."""

import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body
from tests.support.serve.scripted_engine import Connection, ScriptedEngine

COUNTED = {"count": 2, "max_model_len": 2048, "tokens": [5, 6]}


@pytest.mark.parametrize(
    ("path", "body", "passed"),
    [
        ("/tokenize", {"model": "m", "prompt": "hi"}, {"model": "m", "prompt": "hi"}),
        ("/tokenize", chat_body("m@1", add_generation_prompt=True), chat_body("m@1")),
        ("/detokenize", {"model": "m", "tokens": [5, 6]}, {"model": "m", "tokens": [5, 6]}),
    ],
)
def test_they_are_passed_to_the_models_engine(
    gateway: RunningGateway,
    engine: ScriptedEngine,
    path: str,
    body: dict[str, object],
    passed: dict[str, object],
) -> None:
    async def count(connection: Connection) -> None:
        await connection.json(COUNTED)

    engine.script = count
    answer = gateway.client.post(path, json=body)
    assert (answer.status_code, answer.json()) == (200, COUNTED)
    assert answer.headers["x-everlearn-version"] == "m@1"
    assert (engine.received[-1].path, engine.received[-1].body) == (path, passed)


def test_a_model_that_is_not_there_or_has_no_text_is_refused(gateway: RunningGateway) -> None:
    for model, status in (("nope", 404), ("e", 400)):
        answer = gateway.client.post("/tokenize", json={"model": model, "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, "model")
