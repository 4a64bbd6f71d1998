"""Every endpoint fuzzed from its own OpenAPI document (row I18)."""

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

from tests.serve.gateway.conftest import RunningGateway

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
PATHS = 24


def test_the_document_names_every_route_its_body_and_its_errors(gateway: RunningGateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    assert len(document["paths"]) == PATHS
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ChatRequest"
    }
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(chat["responses"])
    assert "422" not in chat["responses"]


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
