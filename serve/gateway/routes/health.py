"""`/health`, `/ready` and `/metrics`: for load balancers and Prometheus."""

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from serve.gateway.pages.openapi import error_responses
from serve.gateway.state import Gateway
from serve.protocol.parsing import error_body


def add_health(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is running."""
        return {"status": "ok"}

    @app.get("/ready", responses=error_responses(503))
    async def ready() -> Response:
        """Whether requests are accepted: at least one engine is ready, and the server is not shutting down. Lists failed models."""
        if gateway.draining:
            return JSONResponse(
                error_body("The server is shutting down.", "server_error", None, "draining"), 503
            )
        if not gateway.router.rows():
            return JSONResponse(error_body("No engine is ready.", "server_error", None, "no_engine"), 503)
        return JSONResponse({"status": "ready", "failed": gateway.router.failed()})

    @app.get("/metrics", responses=error_responses(401, 403, 503), response_class=Response)
    async def metrics(request: Request) -> Response:
        """For Prometheus; needs a key unless the server is bound to loopback."""
        await gateway.authenticator.admit_reader(request)
        gateway.router.count()
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)
