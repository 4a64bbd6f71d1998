"""Settings of one installation: environment (``EVERLEARN_*``) over a YAML file over defaults that work.

The file is ``everlearn.yaml`` in the current directory, or the one that ``EVERLEARN_CONFIG`` names. Nested
settings are reached with two underscores: ``EVERLEARN_SERVE__PORT=9000`` is ``serve: {port: 9000}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from everlearn.errors import ConfigError
from everlearn.privacy import OTHERS, make_private
from everlearn.settings_file import SettingsFile, read_settings_file
from everlearn.suggest import did_you_mean

PREFIX = "EVERLEARN_"
# Read by the program itself, before there are settings.
ERROR_FILE = "EVERLEARN_ERROR_FILE"
"""Where a command also writes why it failed, for the program that started it."""
CONTROLS = frozenset({"EVERLEARN_CONFIG", "EVERLEARN_DEBUG", ERROR_FILE})
# Kubernetes gives every pod variables for each service, so a service called "everlearn" looks like settings.
KUBERNETES = re.compile(r"EVERLEARN_(SERVICE_(HOST|PORT)|PORT(_\d+_(TCP|UDP)))")

Folder = Literal["run", "store", "tmp", "cache", "files", "jobs"]
FOLDERS: tuple[Folder, ...] = get_args(Folder)
LogLevel = Literal["debug", "info", "warning", "error"]


class Remote(BaseModel):
    """A model that another server offers by OpenAI's API at ``url``, there called ``serves_as``.

    ``key_variable`` names the environment variable that holds the key for it.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    url: str = Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$")
    serves_as: str | None = Field(default=None, min_length=1, max_length=256)
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    task: Literal["generate", "embed"] = "generate"
    context: int | None = Field(default=None, ge=1)


class Fallback(BaseModel):
    """Models that answer instead of ``model``, in this order, while that has no engine, no room, or a broken one."""

    model_config = ConfigDict(extra="forbid")

    model: str
    to: list[str] = Field(min_length=1, max_length=8)


class ServeSettings(BaseModel):
    """The gateways and the supervisor.

    ``engine``: ``auto``, or the name of an engine; ``everlearn serve`` checks it. ``vllm_models``: those that vLLM
    serves, whatever ``engine`` is. ``batch_requests``: of batches, at once; 0 takes none. ``key_requests_in_flight``:
    of a key, at once, where it has no limit of its own. ``keep_previous`` auto: the version that served before stays
    loaded where the memory allows, so that going back takes a moment. ``gateways``: processes that share the port;
    with 0 the engines run alone, for gateways that are started elsewhere.
    ``cors_origins``: pages of these origins, as in ``https://app.example.com``, may use the API; ``*`` are all, and
    those need a key.
    """

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    root_path: str = ""
    cors_origins: list[Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s?#@A-Z]+)$")]] = []
    gateways: int = Field(default=1, ge=0, le=64)
    engine: str = "auto"
    vllm_models: list[str] = []
    max_body_bytes: int = Field(default=8 * 1024**2, ge=1024)
    body_timeout_s: float = Field(default=30, gt=0)
    max_n: int = Field(default=8, ge=1, le=128)
    queue_limit: int = Field(default=256, ge=1)
    key_requests_in_flight: int = Field(default=64, ge=1)
    engine_wait_s: float = Field(default=10, ge=0)
    keep_previous: Literal["auto", "off"] = "auto"
    first_token_timeout_s: float = Field(default=120, gt=0)
    inter_token_timeout_s: float = Field(default=60, gt=0)
    drain_timeout_s: float = Field(default=30, ge=0)
    remotes: list[Remote] = []
    fallbacks: list[Fallback] = []
    batch_requests: int = Field(default=16, ge=0, le=1024)
    keys_cache_ttl_s: float = Field(default=2, ge=0)

    def engine_of(self, model: str) -> str:
        """What ``engine`` is for a model."""
        return "vllm" if model in self.vllm_models else self.engine


class OnnxSettings(BaseModel):
    """The ONNX engine. ``None`` means: decided from the machine and the model."""

    model_config = ConfigDict(extra="forbid")

    slots: int = Field(default=32, ge=1, le=1024)
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=16)
    kv_tokens: int | None = Field(default=None, ge=16)
    prefill_chunk: int = Field(default=128, ge=1)
    batch_invariant: bool = False
    speculative_tokens: int = Field(default=0, ge=0, le=16)
    stuck_s: float = Field(default=120, gt=0)


class VllmSettings(BaseModel):
    """What vLLM is told beyond what the machine says.

    ``speculative_tokens``: guessed by ``draft``, a small version of the same vocabulary, or else looked up in prompt
    and answer. ``tensor_parallel``: over how many GPUs a model is split.
    """

    model_config = ConfigDict(extra="forbid")

    speculative_tokens: int = Field(default=0, ge=0, le=16)
    draft: str | None = None
    tensor_parallel: int = Field(default=1, ge=1, le=64)

    @model_validator(mode="after")
    def _draft_of_how_many(self) -> VllmSettings:
        if self.draft and not self.speculative_tokens:
            raise ValueError(
                "a draft guesses speculative_tokens at a time: set them, too (4 is a good number)"
            )
        return self


class ContinualSettings(BaseModel):
    """The queue of continual-training jobs and its worker.

    A worker that gives no sign of life for ``lease_s`` has lost its job to another. ``worker`` auto: wherever
    the libraries for it are installed. ``threads`` None: as many as the machine has cores. Reading a job's files
    may take ``data_memory_bytes`` (at most three quarters of the machine's) and ``data_timeout_s``, and a file may
    unpack to ``max_unpacked_bytes``.
    """

    model_config = ConfigDict(extra="forbid")

    worker: Literal["auto", "on", "off"] = "auto"
    lease_s: float = Field(default=60, gt=0)
    heartbeat_s: float = Field(default=10, gt=0)
    reconcile_s: float = Field(default=1, gt=0)
    shutdown_s: float = Field(default=20, ge=0)
    max_attempts: int = Field(default=3, ge=1, le=100)
    max_file_bytes: int = Field(default=512 * 1024**2, ge=1)
    max_unpacked_bytes: int = Field(default=8 * 1024**3, ge=1)
    data_memory_bytes: int = Field(default=4 * 1024**3, ge=256 * 1024**2)
    data_timeout_s: float = Field(default=4 * 3600, gt=0)
    threads: int | None = Field(default=None, ge=1)
    nice: int = Field(default=10, ge=0, le=19)
    keep_jobs_days: float = Field(default=7, ge=0)

    @model_validator(mode="after")
    def _several_beats_in_a_lease(self) -> ContinualSettings:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(
                f"heartbeat_s {self.heartbeat_s:g} must be at most half of lease_s {self.lease_s:g}: "
                "one late heartbeat must not cost the job"
            )
        return self


class UpdateSettings(BaseModel):
    """The channel of signed updates that gateways hand out at ``/v1/updates``: everybody who may connect may read it.

    ``folder``: of ``everlearn deploy channel``; None: there is no such route. ``count``: whether ``/metrics`` says how
    many devices got which version; nothing of a device is kept.
    """

    model_config = ConfigDict(extra="forbid")

    folder: Path | None = None
    count: bool = False


def _named(name: str) -> AliasChoices:
    """A setting that is also read from the variable name that other programs use for it."""
    return AliasChoices(f"{PREFIX}{name}", name)


class Settings(BaseSettings):
    """Everything an installation can be told. Built by :func:`load_settings`, or directly in a test."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        populate_by_name=True,
        validate_default=True,
    )

    home: Path = Path("~/.everlearn")
    database_url: str | None = Field(default=None, validation_alias=_named("DATABASE_URL"))
    store_url: str | None = Field(default=None, validation_alias=_named("STORE_URL"))
    redis_url: str | None = Field(default=None, validation_alias=_named("REDIS_URL"))
    log_level: LogLevel = "info"
    serve: ServeSettings = ServeSettings()
    onnx: OnnxSettings = OnnxSettings()
    vllm: VllmSettings = VllmSettings()
    continual: ContinualSettings = ContinualSettings()
    updates: UpdateSettings = UpdateSettings()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    def directory(self, name: Folder) -> Path:
        """A folder under ``home``, made on first use; its owner alone may look into it, whatever ``home`` allows."""
        path = self.home / name
        if not path.is_dir():
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        elif path.stat().st_mode & OTHERS:  # made by an earlier version, or by hand
            make_private(path)
        return path

    def resolved_database_url(self) -> str:
        """``database_url``, or SQLite under ``home``."""
        return self.database_url or f"sqlite:///{self.home / 'everlearn.db'}"

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these very settings."""
        variables: dict[str, str] = {}
        for key, value in flatten(self.model_dump(mode="json")):
            if value is not None:
                variables[variable(key)] = json.dumps(value) if isinstance(value, list) else str(value)
        return variables


def load_settings() -> Settings:
    """The settings of this process. Raises ConfigError naming the file and line, or the variable, at fault."""
    file = read_settings_file(_config_path())
    _refuse_misspelt_variables(os.environ)
    try:
        environment = _by_field(EnvSettingsSource(Settings)())
        settings = Settings(**_merge(file.values, environment))
    except (SettingsError, RecursionError) as error:
        raise ConfigError(f"{error}. Write nested settings as EVERLEARN_SERVE__PORT=8000.") from None
    except ValidationError as error:
        raise _explain(error, file) from None
    found = {key: f"{file.path}:{line}" for key, line in file.lines.items()}
    found |= {key: f"env {_set_variable(key)}" for key, _ in flatten(environment)}
    settings._origins = found  # pyright: ignore[reportPrivateUsage]
    return settings


def origins(settings: Settings) -> dict[str, str]:
    """Where each value came from: ``default``, ``env NAME`` or ``FILE:LINE``, by dotted key."""
    recorded = settings._origins  # pyright: ignore[reportPrivateUsage]
    return {key: recorded.get(key, "default") for key, _ in flatten(settings.model_dump())}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values: ``{"serve": {"port": 1}}`` gives ``("serve.port", 1)``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{prefix}{name}", value


def variable(key: str) -> str:
    """The environment variable of a dotted key: ``serve.port`` gives ``EVERLEARN_SERVE__PORT``."""
    return PREFIX + key.upper().replace(".", "__")


def without_password(value: Any) -> Any:
    """A URL that may be shown; anything else as it is."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", value) if isinstance(value, str) else value


def _config_path() -> Path | None:
    named = os.environ.get("EVERLEARN_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"EVERLEARN_CONFIG names {named}, which is not a file")
        return Path(named)
    default = Path("everlearn.yaml")
    return default if default.is_file() else None


def _by_field(environment: dict[str, Any]) -> dict[str, Any]:
    """The environment source answers aliased fields under their alias; files and errors use field names."""
    renamed: dict[str, Any] = {}
    for name, value in environment.items():
        field = name.removeprefix(PREFIX).lower()
        renamed.setdefault(field, value)
    return renamed


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value  # pyright: ignore
    return merged


def _set_variable(key: str) -> str | None:
    """The variable that sets ``key``, if one does."""
    parts = variable(key)
    parents = [parts.rsplit("__", n)[0] for n in range(parts.count("__") + 1)]
    candidates = [*parents, key.upper()] if "." not in key else parents
    present = {name.upper(): name for name in os.environ}
    return next((present[name] for name in candidates if name in present and name not in _FOREIGN), None)


# Fields whose name alone is a variable of the shell or of no one, never ours.
_FOREIGN = frozenset({"HOME", "LOG_LEVEL"})


def _refuse_misspelt_variables(environ: Mapping[str, str]) -> None:
    """A variable close to a setting's is a typing error; one far from all of them belongs to someone else."""
    known = {variable(key) for key, _ in flatten(Settings.model_construct().model_dump())}
    known |= {variable(name) for name in Settings.model_fields}
    for name in environ:
        upper = name.upper()
        ours = upper.startswith(PREFIX) and upper not in CONTROLS and upper not in known
        if ours and not KUBERNETES.fullmatch(upper) and (hint := did_you_mean(upper, known, cutoff=0.85)):
            raise ConfigError(f"{name} is not a setting{hint}", param=name)


def _explain(error: ValidationError, file: SettingsFile) -> ConfigError:
    """The first fault, with its place, its value, and the nearest known key."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    key = key.lower().removeprefix(PREFIX.lower())
    place = f"{name}: " if (name := _set_variable(key)) else ""
    if not place and (line := file.line(key)):
        place = f"{file.path}:{line}: "
    if fault["type"] == "extra_forbidden":
        return ConfigError(f"{place}unknown setting {key!r}{did_you_mean(key, _known_keys())}", param=key)
    shown = "" if "url" in key else f" (got {fault['input']!r})"
    return ConfigError(f"{place}{key}: {fault['msg']}{shown}", param=key)


def _known_keys() -> list[str]:
    keys = [key for key, _ in flatten(Settings.model_construct().model_dump())]
    return [*keys, *Settings.model_fields]
