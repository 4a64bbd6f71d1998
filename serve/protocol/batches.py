"""The bodies of OpenAI's batch API: what is taken, as an allow-list, and how rows are shown."""

from typing import Any, Literal

from pydantic import Field

from serve.batches.table import Batch
from serve.protocol.body import Body
from serve.protocol.jobs import FileId, Metadata


class BatchRequest(Body):
    """POST /v1/batches."""

    input_file_id: FileId
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = Field(None, max_length=16)


def batch_object(batch: Batch) -> dict[str, Any]:
    """OpenAI's ``batch``."""
    ended = {f"{state}_at": None for state in ("completed", "failed", "expired", "cancelled")}
    if batch.finished_at is not None:
        ended[f"{batch.state}_at"] = int(batch.finished_at)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": batch.errors and {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.state,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(batch.created_at),
        "in_progress_at": _seconds(batch.started_at),
        "expires_at": int(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "cancelling_at": _seconds(batch.cancel_requested_at),
        **ended,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.labels or None,
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
