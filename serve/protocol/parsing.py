"""From a request's bytes to a body and back, and what is wrong with one, in the words of OpenAI's errors."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from everlearn.errors import InvalidInput
from everlearn.suggest import did_you_mean
from serve.json_body import MAX_DEPTH, decode
from serve.protocol.body import NOT_OFFERED, Body, field_names

Request = TypeVar("Request", bound=Body)


def parse(model: type[Request], body: bytes, named: str | None = None) -> Request:
    """Validate a request body, with the model that its path ``named``.

    Every flaw (JSON syntax, duplicate keys, NaN, bad UTF-8, depth, size, types, ranges, unknown names) raises
    InvalidInput whose `param` is the path of the field, as in `messages[0].content`.
    """
    data = decode(body)
    if not isinstance(data, dict):
        raise InvalidInput("The request body must be a JSON object.")
    if named is not None and data.setdefault("model", named) != named:
        raise InvalidInput("The path names another model.", param="model")
    return validate(model, data)


def validate(model: type[Request], data: dict[str, Any]) -> Request:
    """`parse` for a body that is decoded already."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(model, data, error) from None
    except RecursionError:
        raise InvalidInput(f"The request body is nested more than {MAX_DEPTH} levels deep.") from None


def encode(request: BaseModel, **changes: Any) -> bytes:
    """The request as the engine gets it: only what the client set and this module knows, plus `changes`."""
    return to_json(request.model_dump(exclude_unset=True) | changes)


def error_body(message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def _explain(model: type[Body], data: dict[str, Any], error: ValidationError) -> InvalidInput:
    details = error.errors(include_url=False, include_input=False)
    paths = [_path(data, detail) for detail in details]
    best = min(range(len(details)), key=lambda i: (_rank(details[i]), -paths[i].count(".")))
    path, detail = paths[best], details[best]
    if detail["type"] == "extra_forbidden":
        return InvalidInput(_unknown(model, path), param=path)
    messages = {_short(d["msg"]) for p, d in zip(paths, details, strict=True) if p == path}
    return InvalidInput(f"Invalid '{path}': {' or '.join(sorted(messages))}.", param=path)


def _rank(detail: ErrorDetails) -> int:
    """Lower explains better: a wrong `type` or an unknown name says more than what follows from it."""
    if detail["type"] in ("not_offered", "union_tag_invalid"):
        return 0
    return {"extra_forbidden": 1, "missing": 3}.get(detail["type"], 2)


def _path(data: Any, detail: ErrorDetails) -> str:
    """The field's path in the client's body; steps pydantic adds for unions and keys are left out."""
    path, here = "", data
    last = len(detail["loc"]) - 1
    for position, step in enumerate(detail["loc"]):
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(here, dict) and (step in here or (position == last and detail["type"] == "missing")):
            path, here = f"{path}.{_short(str(step), 64)}", here.get(step)
    below = detail.get("ctx", {}).get("below") or detail.get("ctx", {}).get("discriminator", "").strip("'")
    return f"{path}.{below}".lstrip(".") if below else path.lstrip(".")


def _unknown(model: type[Body], path: str) -> str:
    name = path.rpartition(".")[2]
    if name in NOT_OFFERED:
        return f"Parameter '{path}' is not supported by this server."
    hint = did_you_mean(name, field_names(model)) if name == path else ""
    return f"Unknown parameter: '{path}'{hint}."


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
