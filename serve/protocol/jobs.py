"""The bodies of OpenAI's fine-tuning and files API: what is taken, as an allow-list, and how rows are shown."""

import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from continual.queue.files import File
from continual.queue.states import Event, Job
from continual.recipe import ContinualRecipe, domain_of, parse_recipe
from everlearn.errors import ConfigError
from everlearn.names import plain_name
from serve.protocol.body import Body, ModelName, disagree, only_types


def _without_nul(text: str) -> str:
    """No database takes it everywhere: PostgreSQL in no text, SQLite in no path of JSON."""
    if "\0" in text:
        raise PydanticCustomError("nul", "Must not contain the character NUL (U+0000)")
    return text


Stored = AfterValidator(_without_nul)
"""For text that goes into the database, or is looked for there."""
FileId = Annotated[str, Field(min_length=1, max_length=128), Stored]
Metadata = dict[
    Annotated[str, StringConstraints(max_length=64), Stored],
    Annotated[str, StringConstraints(max_length=512), Stored],
]


class Hyperparameters(Body):
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=100)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate_multiplier: (
        Literal["auto"] | Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None
    ) = None


class Supervised(Body):
    hyperparameters: Hyperparameters | None = None


class Method(Body):
    type: Literal["supervised"]
    supervised: Supervised | None = None

    @model_validator(mode="before")
    @classmethod
    def _supervised_only(cls, data: Any) -> Any:
        return only_types(data, ("supervised",), "Methods")


class JobRequest(Body):
    """POST /v1/fine_tuning/jobs. ``everlearn`` is the extension: a continual recipe, or parts of one."""

    model: ModelName
    training_file: FileId
    validation_file: FileId | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Stored] | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    metadata: Metadata | None = Field(None, max_length=16)
    integrations: list[Any] | None = Field(None, max_length=0)
    everlearn: dict[str, Any] | None = Field(None, description="Extension: a continual recipe.")

    @model_validator(mode="after")
    def _hyperparameters_once(self) -> "JobRequest":
        if self.hyperparameters is not None and self.method is not None:
            disagree("hyperparameters", "Give hyperparameters within method.supervised, or alone; not both")
        return self

    def recipe(self, training_filename: str) -> ContinualRecipe:
        """The resolved recipe; its domain comes from ``suffix``, else from the file's name. Raises ConfigError."""
        nested = self.method.supervised.hyperparameters if self.method and self.method.supervised else None
        chosen = self.hyperparameters or nested or Hyperparameters()
        values = {"domain": domain_of(self.suffix or training_filename)} | (self.everlearn or {})
        try:
            return parse_recipe(values, **chosen.model_dump(), seed=self.seed)
        except ConfigError as error:
            raise ConfigError(error.message, param=f"everlearn.{error.param}") from None

    def said(self) -> dict[str, Any]:
        """What is kept beside the recipe."""
        return {"metadata": self.metadata or {}}


def job_object(job: Job) -> dict[str, Any]:
    """OpenAI's ``fine_tuning.job``; ``everlearn`` has what that cannot say."""
    recipe = ContinualRecipe.model_validate(job.recipe)
    hyperparameters = {
        "n_epochs": recipe.epochs,
        "batch_size": max(1, recipe.batch_tokens // recipe.sequence_tokens),
        "learning_rate_multiplier": recipe.lr_multiplier,
    }
    error = job.error and {key: job.error.get(key) for key in ("code", "message", "param")}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "error": error,
        "fine_tuned_model": fine_tuned_name(job),
        "finished_at": _seconds(job.finished_at),
        "hyperparameters": hyperparameters,
        "model": job.model,
        "organization_id": "everlearn",
        "result_files": [job.result_file] if job.result_file else [],
        "seed": job.seed,
        "status": job.state,
        "trained_tokens": job.trained_tokens,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "estimated_finish": _estimated_finish(job),
        "integrations": [],
        "metadata": job.request.get("metadata") or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "everlearn": {
            "attempt": job.attempt,
            "pause_requested_at": _seconds(job.pause_requested_at),
            "progress": job.progress,
            "recipe": job.recipe,
            "report": job.report,
            "started_at": _seconds(job.started_at),
        },
    }


def _estimated_finish(job: Job) -> int | None:
    """Of a running job; not what an earlier attempt had told, once that is past."""
    told = job.progress.get("finish") if job.state == "running" else None
    return told if told and told > time.time() else None


def fine_tuned_name(job: Job) -> str | None:
    """The version that a job made; with the job's suffix in it where it had one, as OpenAI names them."""
    if not job.result_model or not job.suffix:
        return job.result_model
    model, _, version = job.result_model.partition("@")
    return f"ft:{model}:everlearn:{plain_name(job.suffix, '._-', 'tuned')}:{version}"


def event_object(event: Event) -> dict[str, Any]:
    return {
        "id": event_id(event.id),
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if "step" in event.data else "message",
        "data": event.data,
    }


def event_id(number: int) -> str:
    return f"ftevent-{number}"


def file_object(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
