"""What a page's grammar allows is what the schema allows: texts drawn from it at random are valid values."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deploy.edge.web.packages import WEB, node
from everlearn.registry.registry import Registry
from everlearn.settings import Settings

Schema = dict[str, Any]

TREE: Schema = {
    "type": "object",
    "properties": {
        "v": {"type": "boolean"},
        "below": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
    },
    "required": ["v"],
}
ODD = 'q"ü\\/\n'
ENFORCED: list[Schema] = [
    {"type": "object"},
    {"type": "integer", "minimum": -15, "maximum": 1203},
    {"type": "integer", "exclusiveMaximum": 7},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -0.5, "exclusiveMaximum": 0.171},
    {"type": "number", "exclusiveMinimum": 1.652},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.02},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[^a-z]{1,3}[0-9]{2,3}(\\.|x\"y|\\\\)?$"},
    {"type": "string", "pattern": "^.{2,4}$"},
    {"type": "string", "pattern": "^(?:ab|c[\\]\\-x]){2}$"},
    {"type": "string", "pattern": "^[äöüÄ-Ü\\u4e00-\\u9fff]{1,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"const": 1}, "minItems": 3, "maxItems": 4},
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, ODD: {"type": "boolean"}},
        "required": ["b", "z"],
    },
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": "x"}}},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"enum": ["1a0", "380", *(f"28{digit}" for digit in "0123456789a"), None, {"x": [1, 2.5, ODD]}, "ü€😀/"]},
    {"enum": [1, "a"], "type": "string"},
    {"type": ["boolean", "null", "array"], "items": {"const": 1}, "maxItems": 2},
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
]  # fmt: skip
OPEN: dict[str, Schema] = {
    "schema.uniqueItems": {"type": "array", "uniqueItems": True},
    "schema.minProperties": {"type": "object", "minProperties": 1},
    "schema.not": {"type": "boolean", "not": {"const": True}},
    "schema.format": {"type": "string", "format": "uri"},
    "schema.pattern": {"type": "string", "pattern": "(?=a)b"},
    "schema.oneOf": {"oneOf": [{"const": 1}, {"const": 2}]},
    "schema.multipleOf": {"type": "integer", "multipleOf": 3},
    "schema.maxLength": {"type": "string", "pattern": "^a+$", "maxLength": 3},
    "schema.properties.a.allOf": {"properties": {"a": {"allOf": [{"type": "null"}, {"type": "null"}]}}},
}
DEEP: Schema = {"type": "object"}
for _ in range(70):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
REFUSED: dict[str, Schema] = {
    "nested more than 64 levels deep": DEEP,
    "has 140": {"enum": ["x" * 140_000]},
    "too large, or repeats too much": {"type": "string", "pattern": "^((a{0,1000}){0,1000}){0,1000}$"},
    "minItems of 3 and a maxItems of 1": {"type": "array", "minItems": 3, "maxItems": 1},
    "admits no integer": {"type": "integer", "minimum": 1.2, "maximum": 1.8},
    'schema.type is "text"': {"type": "text"},
    "no regular expression": {"type": "string", "pattern": "(("},
    "nothing is there": {"$ref": "#/$defs/none"},
    "must point into the schema": {"$ref": "https://example.org/schema"},
    "admits no answer": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "it can be read in too many ways": {"anyOf": [{"const": 1}, {"$ref": "#"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def smollm2_tokenizer(real_settings: Settings) -> dict[str, Any]:
    registry = Registry(real_settings)
    return json.loads((registry.path(registry.resolve("smollm2@champion")) / "tokenizer.json").read_bytes())


def tried(tokenizer: dict[str, Any], schemas: list[Schema], draws: int = 0) -> list[dict[str, Any]]:
    """What `drawn.mjs` says of each schema."""
    asked = {
        "modules": str(WEB / "everlearn_web" / "grammar"),
        "tokenizer": tokenizer,
        "ends": [2],
        "schemas": schemas,
        "draws": draws,
    }
    program = Path(__file__).with_name("drawn.mjs")
    done = subprocess.run(
        [node(), program], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_what_is_drawn_from_a_grammar_is_valid(smollm2_tokenizer: dict[str, Any]) -> None:
    for schema, found in zip(ENFORCED, tried(smollm2_tokenizer, ENFORCED, draws=6), strict=True):
        assert found["leftOpen"] == [], schema
        values = [json.loads(text) for text in found["texts"]]
        assert len(values) > 0, (schema, found)
        check = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        wrong = [value for value in values if not check.is_valid(value)]
        assert wrong == [], schema


def test_what_a_grammar_cannot_enforce_is_named(smollm2_tokenizer: dict[str, Any]) -> None:
    for place, found in zip(OPEN, tried(smollm2_tokenizer, list(OPEN.values())), strict=True):
        assert found["leftOpen"] == [place], place


def test_a_schema_that_means_nothing_or_too_much_is_refused_soon(smollm2_tokenizer: dict[str, Any]) -> None:
    began = time.monotonic()
    for why, found in zip(REFUSED, tried(smollm2_tokenizer, list(REFUSED.values()), draws=1), strict=True):
        assert found.get("code") == "invalid_input" and why in found["message"], (why, found)
    assert time.monotonic() - began < 100
