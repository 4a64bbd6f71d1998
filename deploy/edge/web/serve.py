"""`python -m deploy.edge.web.serve DIR`: serves a page's folder on this machine, isolated so that it may use threads.

For trying a page out. Any static server does; browsers keep files and run threads only over https or on localhost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(directory: Path, headers: dict[str, str] = HEADERS) -> Any:
    """The ASGI application: files of `directory`, in ranges if asked, with `headers`."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    class WithHeaders(StaticFiles):
        def file_response(self, *arguments: Any, **options: Any) -> Any:
            response = super().file_response(*arguments, **options)
            response.headers.update(headers)
            return response

    return Starlette(routes=[Mount("/", WithHeaders(directory=directory, html=True))])


def main(directory: str, port: str = "8080") -> None:
    import uvicorn

    print(f"http://localhost:{port}/", flush=True)
    uvicorn.run(create_app(Path(directory)), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("usage: python -m deploy.edge.web.serve DIR [PORT]")
    main(*sys.argv[1:])
