"""An endpoint that is added as CONTRIBUTING.md says."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body

REPOSITORY = Path(__file__).parents[3]
ENDPOINT = "/v1/chat/short"


def example(name: str) -> str:
    """A code block of CONTRIBUTING.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def extended(tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway whose sources have the example's file, its import, and its line."""
    package = tmp_path / "serve"
    shutil.copytree(REPOSITORY / "serve", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "gateway" / "routes" / "short_chat.py").write_text(example("endpoint"))
    app = package / "gateway" / "app.py"
    before, line, after = app.read_text().partition("    add_chat(app, gateway)\n")
    assert line
    docstring, separator, rest = before.partition("\n\n")
    app.write_text(
        docstring + separator + example("endpoint import") + rest + line + example("endpoint line") + after
    )
    home = Path(tempfile.mkdtemp(prefix="gw"))
    gateway = RunningGateway(home, sources=tmp_path)
    yield gateway
    gateway.stop()
    shutil.rmtree(home, ignore_errors=True)


def test_an_endpoint_added_as_documented_answers_with_the_limits_of_every_other(
    extended: RunningGateway, gateway: RunningGateway
) -> None:
    engine = extended.add_engine("m")
    answer = extended.client.post(ENDPOINT, json=chat_body(max_tokens=500))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    sent = engine.received[-1].body
    assert (sent["max_tokens"], sent["max_completion_tokens"]) == (16, 16)

    refused = extended.client.post(ENDPOINT, json=chat_body(colour="red"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "colour")
    assert ENDPOINT in extended.client.get("/openapi.json").json()["paths"]
    assert extended.metric(f'everlearn_requests_total{{model="m",route="{ENDPOINT}",status="200"}}') == 1

    assert gateway.client.post(ENDPOINT, json=chat_body()).status_code == 404
