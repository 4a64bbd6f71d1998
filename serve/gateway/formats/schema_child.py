"""Validates JSON against schemas in a process of its own, since a schema can keep a validator busy for ever.

`python -m serve.gateway.formats.schema_child` reads lines of JSON, `[schema, text]`, and answers each with what is wrong
with the text: a sentence, null where it satisfies the schema, or false where that cannot be determined.
"""

import json
import resource
import sys
from typing import Any

import jsonschema_rs

MEMORY_BYTES = 1024**3
MAX_BACKTRACKING = 1_000_000
MAX_PLACE_CHARS = 500
"""Limit on a reported path: keys may be as long as the answer."""


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        schema, text = json.loads(line)
        sys.stdout.write(json.dumps(flaw(schema, text)) + "\n")
        sys.stdout.flush()


def flaw(schema: dict[str, Any], text: str) -> str | bool | None:
    """What is wrong with `text`; False where the schema is invalid. Fetches no other document."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "it is not JSON"
    try:
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKING)
        validator = jsonschema_rs.validator_for(
            schema, pattern_options=patterns, validate_formats=False, offline=True
        )
        error = next(validator.iter_errors(value), None)
    except (jsonschema_rs.ValidationError, ValueError):  # the latter also for half a character
        return False
    if error is None:
        return None
    place = "".join(f"[{step!r}]" for step in error.instance_path)[:MAX_PLACE_CHARS]
    rule = ".".join(map(str, error.schema_path))[:MAX_PLACE_CHARS]
    return f"the schema's {rule} does not hold at ${place}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON's")


if __name__ == "__main__":
    main()
