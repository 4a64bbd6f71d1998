"""Lists in pages, as OpenAI's clients request them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from everlearn.errors import InvalidInput

MAX_LISTED = 100

T = TypeVar("T")


async def page(limit: int, find: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Find one more than the limit, so that it shows whether there are more; in a thread."""
    return await asyncio.to_thread(find, *arguments, limit=limit + 1, **named)


def listed(objects: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list of what :func:`page` found."""
    shown = objects[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(objects) > limit,
    }


def limit_in(query: Mapping[str, str], default: int, most: int = MAX_LISTED) -> int:
    """The query's ``limit``. Raises InvalidInput."""
    given = query.get("limit", str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= most):
        raise InvalidInput(f"Invalid 'limit': an integer from 1 to {most}.", param="limit")
    return int(given)


def described(*parameters: dict[str, Any]) -> dict[str, Any]:
    """Query parameters, for the OpenAPI document."""
    return {"parameters": list(parameters)}


def parameter(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


PAGE = (
    parameter("after", type="string"),
    parameter("limit", type="integer", minimum=1, maximum=MAX_LISTED),
)
