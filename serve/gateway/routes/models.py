"""`/v1/models`: what is served, and the deletion of what a fine-tuning job made."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request

from continual.queue.jobs import Jobs
from everlearn.bundles.reference import parse_reference
from everlearn.errors import Forbidden, InvalidInput, NotFound
from everlearn.registry.keys import covers, may_train
from everlearn.registry.tables import ApiKey
from serve.gateway.http.exchange import exchange_of
from serve.gateway.http.failures import ModelNotFound
from serve.gateway.pages.openapi import error_responses
from serve.gateway.routes.service import WRITE_ERRORS, ResourceService
from serve.gateway.state import Gateway
from serve.protocol.body import plain_ref
from serve.replicas import ReadyReplica

NO_TRAINER = "This API key may not delete models: it takes one made by `everlearn keys create NAME --train`."


def add_models(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes."""
    service, jobs = ResourceService(gateway), Jobs(gateway.settings, gateway.db)
    errors = error_responses(401, 403, 404, 500, 503)

    @app.get("/v1/models", responses=errors)
    async def list_models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": visible(gateway, await gateway.authenticator.admit(request))}

    @app.get("/v1/models/{model:path}", responses=errors)
    async def get_model(request: Request, model: str) -> dict[str, Any]:
        key = await gateway.authenticator.admit(request)
        for offered in visible(gateway, key):
            if plain_ref(model) in (offered["id"], f"{offered['id']}@{offered['version']}"):
                return offered
        raise ModelNotFound(f"The model '{model[:64]}' does not exist or is not being served.", param="model")

    @app.delete("/v1/models/{model:path}", responses=WRITE_ERRORS)
    async def delete_model(request: Request, model: str) -> dict[str, Any]:
        """A key may delete what its own jobs made; an administrator, or anyone while there are no keys, any version."""
        client = await service.writer(request)
        key, ref = exchange_of(request).key, plain_ref(model)
        if key and not may_train(key):
            raise Forbidden(NO_TRAINER)
        missing = ModelNotFound(
            f"The model '{model[:64]}' does not exist, or no job of this key made it.", param="model"
        )
        try:
            reference = parse_reference(ref)
        except InvalidInput:
            raise missing from None
        if not isinstance(reference.version, int):
            raise InvalidInput(
                "Name the version to delete, as in 'name@2', or by the fine_tuned_model of its job. "
                "A whole model goes by `everlearn rm`.",
                param="model",
            )

        def delete() -> None:
            from everlearn.registry.registry import Registry  # heavy: it imports the blob store

            if key and not (
                key.admin or (covers(key, str(reference)) and jobs.made(str(reference), client=client))
            ):
                raise missing
            registry = Registry(gateway.settings)
            try:
                registry.delete(str(reference), actor=client.actor)
            except NotFound:
                raise missing from None
            registry.collect()

        await asyncio.to_thread(delete)
        return {"id": model, "object": "model", "deleted": True}


def visible(gateway: Gateway, key: ApiKey | None) -> list[dict[str, Any]]:
    """The models that a key may use, as OpenAI lists them."""
    models: dict[str, dict[str, Any]] = {}
    for row in gateway.router.rows():
        if key is None or key.models is None or row.model in {m.partition("@")[0] for m in key.models}:
            models[row.model] = _model_object(row)
    return list(models.values())


def _model_object(row: ReadyReplica) -> dict[str, Any]:
    return {
        "id": row.model,
        "object": "model",
        "created": int(row.started_at),
        "owned_by": "everlearn",
        "version": row.version,
        "task": row.task,
        "context": row.context,
    }
