"""The web pages (playground, console, API reference): static files without data, so no key is needed."""

from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

PAGES = {"/": "playground.html", "/console": "console.html", "/docs": "docs.html"}
PARTS = (
    "playground.css", "playground.js", "playground_answer.js", "playground_api.js", "playground_images.js",
    "playground_tasks.js", "playground_text.js", "console.css", "console.js", "console_elements.js",
    "docs.css", "docs.js",
)  # fmt: skip
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def add_pages(app: FastAPI) -> None:
    """Add the pages, their scripts and styles, and the OpenAPI document."""
    package = files("serve.gateway.pages")
    routes = PAGES | {f"/{name}": name for name in PARTS}

    async def page(request: Request) -> Response:
        name = routes[request.scope["route"].path]
        try:
            content = package.joinpath(name).read_bytes()
        except FileNotFoundError:
            raise HTTPException(404) from None
        return Response(content, headers=HEADERS, media_type=TYPES[name.rpartition(".")[2]])

    for path in routes:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())
