"""Text that no database holds everywhere (NUL, half a character) is refused by its field's name, wherever it comes in."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from everlearn.errors import InvalidInput
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from tests.continual.queue.conftest import add_model
from tests.serve.gateway.conftest import RunningGateway

JOBS, BATCHES, ACTS = "/v1/fine_tuning/jobs", "/v1/batches", "/console/acts"
LINES = b'{"text": "a line of text"}\n' * 10
NUL, HALF = "a\0b", "\ud83d"
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (JOBS, "metadata.k", {"metadata": {"k": NUL}}),
    (JOBS, f"metadata.{NUL}", {"metadata": {NUL: "v"}}),
    (JOBS, "suffix", {"suffix": NUL}),
    (JOBS, "training_file", {"training_file": NUL}),
    (JOBS, "validation_file", {"validation_file": NUL}),
    (JOBS, "model", {"model": NUL}),
    (JOBS, "everlearn.domain", {"everlearn": {"domain": NUL}}),
    (BATCHES, "metadata.k", {"metadata": {"k": NUL}}),
    (BATCHES, f"metadata.{NUL}", {"metadata": {NUL: "v"}}),
    (BATCHES, "input_file_id", {"input_file_id": NUL}),
    (ACTS, "subject", {"subject": NUL}),
]


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway()
    add_model(Registry(gateway.settings), "m")
    gateway.add_engine("m")
    return gateway


@pytest.fixture(scope="module")
def bodies(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    """One good body for each route."""

    def upload(purpose: str) -> str:
        files = {"file": ("a.jsonl", LINES), "purpose": (None, purpose)}
        return gateway.client.post("/v1/files", files=files).json()["id"]

    batch = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "input_file_id": upload("batch")}
    return {
        JOBS: {"model": "m", "training_file": upload("fine-tune")},
        BATCHES: batch,
        ACTS: {"act": "revoke", "subject": "key-1"},
    }


@pytest.mark.parametrize(
    ("path", "param", "changed"), CASES, ids=[f"{path} {param!r}" for path, param, _ in CASES]
)
def test_every_field_that_is_kept_is_refused_by_name(
    gateway: RunningGateway, bodies: dict[str, Any], path: str, param: str, changed: dict[str, Any]
) -> None:
    def send(text: str) -> Any:
        headers = {"content-type": "application/json"}
        return gateway.client.post(path, content=text, headers=headers)

    whole = json.dumps(bodies[path] | changed)
    answer = send(whole)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    half = send(whole.replace(json.dumps(NUL)[1:-1], json.dumps(HALF)[1:-1]))
    assert half.status_code == 400, half.text


@pytest.mark.parametrize(
    "path",
    [
        f"{JOBS}?metadata[a%00b]=c",
        f"{JOBS}?metadata[a]=b%00c",
        f"{JOBS}?after=a%00b",
        f"{JOBS}/a%00b",
        f"{JOBS}/a%00b/events",
        f"{BATCHES}/a%00b",
        f"{BATCHES}?after=a%00b",
        "/v1/files/a%00b",
        "/v1/files/a%00b/content",
        "/v1/files?after=a%00b",
        "/v1/files?purpose=a%00b",
    ],
)
def test_nothing_is_looked_for_that_cannot_be_there(gateway: RunningGateway, path: str) -> None:
    assert gateway.client.get(path).status_code == 400


def test_the_names_of_files_and_keys_hold_neither(gateway: RunningGateway) -> None:
    for name in (NUL, HALF):
        form = (
            b'--X\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--X\r\ncontent-disposition: form-data; name="file"; filename="'
            + name.encode("utf-8", "surrogatepass")
            + b'"\r\n\r\n{}\r\n--X--\r\n'
        )
        headers = {"content-type": "multipart/form-data; boundary=X"}
        answer = gateway.client.post("/v1/files", content=form, headers=headers)
        assert answer.status_code == 200 and not {"\0", HALF} & set(answer.json()["filename"])
        with pytest.raises(InvalidInput):
            create_key(gateway.db, name)
        with pytest.raises(InvalidInput):
            create_key(gateway.db, "k", models=[name])
