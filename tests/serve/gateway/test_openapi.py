"""Every endpoint fuzzed from its own OpenAPI document."""

import json
import re
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import InvalidSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.gateway.pages.openapi import BODIES
from serve.gateway.pages.reference import REFERENCE
from tests.serve.gateway.conftest import RunningGateway
from tests.support.serve.browser import check_no_inline_code

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
PATHS = 35


def test_the_document_names_every_route_its_body_and_its_errors(gateway: RunningGateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    assert len(document["paths"]) == PATHS
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ChatRequest"
    }
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(chat["responses"])
    assert "422" not in chat["responses"]


def test_the_document_tells_of_every_route_for_the_page_that_shows_it(gateway: RunningGateway) -> None:
    """Each has a sentence and a group, and what is sent as JSON has an example that the server takes."""
    document = gateway.client.get("/openapi.json").json()
    told = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert {f"{method} {path}" for method, path in told} >= set(REFERENCE)
    for method, path in told:
        operation = document["paths"][path][method]
        assert operation["description"] and len(operation["tags"]) == 1, (method, path)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body:
            BODIES[path].model_validate_json(json.dumps(body["example"]))


def test_the_page_of_the_api_comes_from_here_alone(gateway: RunningGateway) -> None:
    page = gateway.client.get("/docs")
    assert page.status_code == 200
    check_no_inline_code(page)  # type: ignore[arg-type]
    for part in ("docs.js", "docs.css"):
        answer = gateway.client.get(f"/{part}")
        assert answer.status_code == 200
        assert not re.search("https?://|innerHTML|eval\\(", answer.text)


@pytest.mark.slow
def test_a_fuzz_of_every_route_finds_no_server_error(gateway: RunningGateway) -> None:
    """Bodies that fit the schema, bodies that do not, and every model there is; bounded in examples."""
    document = gateway.client.get("/openapi.json").json()
    for name in (
        "ChatRequest",
        "CompletionRequest",
        "ResponsesRequest",
        "JobRequest",
        "TokenizeRequest",
        "MessagesRequest",
    ):
        document["components"]["schemas"][name]["properties"]["model"] = {"enum": ["m", "e", "nope"]}
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        tried += _fuzz(operation, schemathesis.GenerationMode.POSITIVE, gateway.url)
        if "requestBody" in document["paths"][operation.path][operation.method]:  # else nothing can be wrong
            tried += _fuzz(operation, schemathesis.GenerationMode.NEGATIVE, gateway.url)
    assert tried > 200
    assert gateway.client.get("/health").status_code == 200


def _fuzz(operation: Any, mode: schemathesis.GenerationMode, url: str) -> int:
    count = 0

    @settings(
        max_examples=30, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def run(case: schemathesis.Case) -> None:
        nonlocal count
        count += 1
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)

    with suppress(
        InvalidSchema
    ):  # now and then its generator breaks a schema so that it cannot fill it itself
        given(case=operation.as_strategy(generation_mode=mode))(run)()
    return count
