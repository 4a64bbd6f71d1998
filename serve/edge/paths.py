"""The gateway's paths on a device, where there is no gateway: its other spellings, and Hugging Face's path of a model."""

from __future__ import annotations

from serve.engines import HAND_OVER, TAKE_OVER
from serve.engines.onnx.encoders.heads import HeadBackend
from serve.engines.onnx.http import Backend

SPELLINGS = {"/v1/score": "/score", "/v1/rerank": "/rerank", "/v2/rerank": "/rerank"}


def offer_paths(backend: Backend, model: str) -> None:
    """Changes the routes of ``backend`` from those that a gateway asks to those that clients do."""
    for internal in (HAND_OVER, TAKE_OVER):
        backend.routes.pop(internal, None)
    for other, path in SPELLINGS.items():
        if path in backend.routes:
            backend.routes[other] = backend.routes[path]
    if isinstance(backend, HeadBackend):
        backend.tells_usage = False
        if "/models" in backend.routes:
            backend.routes[f"/models/{model}"] = backend.routes.pop("/models")
