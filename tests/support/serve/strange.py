"""Strange but valid JSON: bodies of requests for hypothesis."""

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, -(10**400), 10**4000]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e308, 5e-324, -0.0, 1e-300]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["\\ud83d", "\x00", "\ufeff", "<tool_call>", "<|im_start|>", "{{ x }}", "#", "#/$defs/A", "http://x/y", "(a+)+$",
         "(?=a)", "(", "[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, '"\\ud83d"', "1" * 5000, "x" * 5000]
    ),
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYWORDS = st.sampled_from(
    ["type", "properties", "items", "enum", "const", "$ref", "$defs", "$id", "$schema", "allOf", "anyOf", "oneOf", "not",
     "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength", "maxLength", "minItems",
     "maxItems", "uniqueItems", "required", "additionalProperties", "patternProperties", "propertyNames", "default",
     "minProperties", "x-guidance", "description", "prefixItems", "if"]
)  # fmt: skip
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "null", ["string", "null"]])
SCHEMAS = st.recursive(
    st.dictionaries(KEYWORDS, VALUES, max_size=3) | st.fixed_dictionaries({"type": TYPES}),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(TEXTS, inner, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, max_size=2), "$defs": st.dictionaries(TEXTS, inner, max_size=2)}),
        st.fixed_dictionaries({"type": TYPES}, optional={"items": inner, "minimum": NUMBERS, "maximum": NUMBERS,
                               "multipleOf": NUMBERS, "enum": st.lists(VALUES, max_size=3), "pattern": TEXTS}),
    ),
    max_leaves=4,
)  # fmt: skip


def tools(schema: Any, strict: Any) -> list[Any]:
    function = {"name": "f", "description": "d", "parameters": schema, "strict": strict}
    return [{"type": "function", "function": function}]


def called(arguments: str, content: Any = None) -> list[Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
    return [*messages, {"role": "tool", "tool_call_id": "c", "content": content or "ok"}]


ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
FIELDS = st.sampled_from(
    ["seed", "logit_bias", "stop", "temperature", "top_p", "top_k", "min_p", "n", "user", "metadata", "model", "tools",
     "tool_choice", "response_format", "messages", "max_tokens", "logprobs", "top_logprobs", "presence_penalty", "stream",
     "stream_options", "prompt", "service_tier", "parallel_tool_calls", "tokens", "unknown"]
)  # fmt: skip
STRICT = st.sampled_from([True, False, None])
BODIES = st.one_of(
    st.builds(lambda field, value: {**ASKED, field: value}, FIELDS, VALUES),
    st.builds(lambda token, value: {**ASKED, "logit_bias": {token: value}}, TEXTS | st.just("5"), NUMBERS),
    st.builds(lambda text: {**ASKED, "messages": called(text)}, TEXTS | VALUES.map(json.dumps)),
    st.builds(lambda text: {**ASKED, "messages": [{"role": "user", "content": text}], "stop": text}, TEXTS),
    st.builds(
        lambda schema, strict, choice: {**ASKED, "tools": tools(schema, strict), "tool_choice": choice},
        SCHEMAS, STRICT, st.sampled_from(["auto", "required", "none"]),
    ),
    st.builds(
        lambda schema, strict: {**ASKED, "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": schema, "strict": strict}}},
        SCHEMAS, STRICT,
    ),
    st.builds(lambda text: {**ASKED, "response_format": {"type": "grammar", "grammar": text}},
              TEXTS | TEXTS.map("start: {}".format) | TEXTS.map("start: /{}/".format)),
    VALUES,
)  # fmt: skip
