"""The console's data: a bounded view of the database, and the gateways' metrics.

Nothing here is secret: of a key its name and its first letters, of a request nothing at all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import Metric
from sqlalchemy import Connection, Engine, func, select

from everlearn.bundles.bundle import BundleManifest
from everlearn.registry.audit import list_acts
from everlearn.registry.database import read
from everlearn.registry.keys import is_active
from everlearn.registry.records import replica_state
from everlearn.registry.tables import AliasRow, ApiKey, BatchRow, JobRow, ReplicaRow, VersionRow
from serve.engines.programs import BY_DEFAULT
from serve.gateway.http.metrics import Metrics
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.router import Router

MAX_VERSIONS = 200
MAX_ALIASES = 1000
MAX_ENGINES = 100
MAX_KEYS = 200
MAX_JOBS = 50
MAX_BATCHES = 50
MAX_ACTS = 20
MAX_TEXT_CHARS = 2000

ENGINE = ("id", "model", "version", "kind", "task", "role", "pid", "context", "started_at")

Families = dict[str, Metric]


class Overview:
    """Reads the tables. A bundle never changes, so what it says is read once."""

    def __init__(self, db: Engine) -> None:
        self._db = db
        self._facts: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, Any]:
        """Each table's rows, and how many there are in all. Raises Unavailable."""
        acts = [vars(act) for act in list_acts(self._db, MAX_ACTS)]
        with read(self._db) as connection:
            return {
                "acts": acts,
                "versions": self._versions(connection),
                "aliases": _aliases(connection),
                "engines": _engines(connection),
                "keys": _keys(connection),
                "jobs": _jobs(connection),
                "batches": _batches(connection),
            }

    def _versions(self, connection: Connection) -> dict[str, Any]:
        """The newest, and whatever an alias names."""
        named = select(AliasRow.alias).where(
            AliasRow.model == VersionRow.model, AliasRow.version == VersionRow.version
        )
        query = select(
            VersionRow.model, VersionRow.version, VersionRow.digest, VersionRow.format, VersionRow.task,
            VersionRow.parent_digest, VersionRow.created_at,
        ).order_by(named.exists().desc(), VersionRow.created_at.desc(), VersionRow.model, VersionRow.version.desc())  # fmt: skip
        rows = connection.execute(query.limit(MAX_VERSIONS)).all()
        parents = _refs(connection, {row.parent_digest for row in rows if row.parent_digest})
        self._facts = {row.digest: self._facts_of(connection, row.digest) for row in rows}
        shown = [
            row._asdict()
            | self._facts[row.digest]
            | {"parent": parents.get(row.parent_digest), "servable": row.format in BY_DEFAULT}
            for row in rows
        ]
        return _table(connection, VersionRow, shown)

    def _facts_of(self, connection: Connection, digest: str) -> dict[str, Any]:
        if digest in self._facts:
            return self._facts[digest]
        query = select(VersionRow.bundle).where(VersionRow.digest == digest).limit(1)
        manifest = BundleManifest.model_validate(connection.execute(query).scalar_one())
        return {
            "parameters": manifest.parameters,
            "size_bytes": manifest.size_bytes,
            "recipe": recipe_kind(manifest.recipe),
        }


def recipe_kind(recipe: dict[str, Any]) -> str:
    """In a word how a version was made: `import gguf`, `export int4-onnx`, `train`, `continual`, `distill`."""
    step = next(iter(recipe), "")
    told = recipe.get(step)
    detail = (told.get("to") or told.get("kind")) if isinstance(told, dict) else None
    return f"{step} {detail or ''}".strip()[:80]


def traffic(metrics: Metrics) -> dict[str, Any]:
    """The counts so far; what happened between two looks is their difference.

    Histograms are cumulative counts by upper bound in seconds, by model; requests are those of the API.
    """
    families = {family.name: family for family in metrics.gathered().collect()}
    requests: dict[str, dict[str, float]] = {}
    for labels, value in _samples(families, "everlearn_requests", "_total"):
        if labels["route"].startswith("/v1/"):
            counted = requests.setdefault(labels["model"], {})
            counted[labels["status"]] = counted.get(labels["status"], 0) + value
    tokens: dict[str, dict[str, float]] = {}
    for labels, value in _samples(families, "everlearn_tokens", "_total"):
        tokens.setdefault(labels["model"], {})[labels["kind"]] = value
    waiting = _samples(families, "everlearn_requests_waiting")
    return {
        "first_token": _buckets(families, "everlearn_time_to_first_token_seconds"),
        "inter_token": _buckets(families, "everlearn_inter_token_seconds"),
        "tokens": tokens,
        "requests": requests,
        "in_flight": sum(value for _, value in _samples(families, "everlearn_requests_in_flight")),
        "waiting": {labels["model"]: value for labels, value in waiting},
    }


def with_load(engines: list[dict[str, Any]], router: Router) -> list[dict[str, Any]]:
    """The engines of the table and those of other servers, with the requests at each, None where none are sent."""
    loads, ejected = router.loads(), router.ejected()
    return [
        engine | {"in_flight": loads.get(engine["id"]), "ejected": engine["id"] in ejected}
        for engine in [*engines, *map(_remote, router.remotes())]
    ]


def _remote(replica: Replica) -> dict[str, Any]:
    row = replica.row
    state = {"state": "ready" if replica.here else "away", "error": replica.away or None}
    return {column: getattr(row, column) for column in (*ENGINE, "url")} | {"version": None} | state


def _samples(families: Families, name: str, suffix: str = "") -> Iterator[tuple[dict[str, str], float]]:
    for sample in families[name].samples if name in families else ():
        if sample.name == name + suffix:
            yield sample.labels, sample.value


def _buckets(families: Families, name: str) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for labels, value in _samples(families, name, "_bucket"):
        found.setdefault(labels["model"], []).append((labels["le"], value))
    return found


def _table(connection: Connection, table: type[Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": rows, "total": connection.scalar(select(func.count()).select_from(table))}


def _refs(connection: Connection, digests: set[str]) -> dict[str, str]:
    """What a digest is called here: the name it got first."""
    query = select(VersionRow.digest, VersionRow.model, VersionRow.version).where(
        VersionRow.digest.in_(digests)
    )
    newest_first = connection.execute(query.order_by(VersionRow.created_at.desc()))
    return {row.digest: f"{row.model}@{row.version}" for row in newest_first}


def _aliases(connection: Connection) -> list[dict[str, Any]]:
    query = select(AliasRow.model, AliasRow.alias, AliasRow.version, AliasRow.share)
    query = query.order_by(AliasRow.model, AliasRow.alias)
    return [row._asdict() for row in connection.execute(query.limit(MAX_ALIASES))]


def _engines(connection: Connection) -> dict[str, Any]:
    query = select(ReplicaRow.__table__).order_by(ReplicaRow.model, ReplicaRow.started_at.desc())
    rows = [
        {column: getattr(row, column) for column in ENGINE}
        | {
            "version": row.version or None,
            "state": replica_state(row),
            "error": (row.error or "")[:MAX_TEXT_CHARS] or None,
        }
        for row in connection.execute(query.limit(MAX_ENGINES))
    ]
    return _table(connection, ReplicaRow, rows)


def _keys(connection: Connection) -> dict[str, Any]:
    query = select(
        ApiKey.id, ApiKey.name, ApiKey.prefix, ApiKey.models, ApiKey.requests_per_minute, ApiKey.tokens_per_minute,
        ApiKey.tokens_per_month, ApiKey.requests_in_flight, ApiKey.admin, ApiKey.train, ApiKey.created_at,
        ApiKey.expires_at, ApiKey.revoked_at,
    ).order_by(ApiKey.revoked_at.is_not(None), ApiKey.created_at.desc(), ApiKey.id)  # fmt: skip
    rows = [
        row._asdict() | {"state": "active" if is_active(row) else "revoked" if row.revoked_at else "expired"}
        for row in connection.execute(query.limit(MAX_KEYS))
    ]
    return _table(connection, ApiKey, rows)


def _jobs(connection: Connection) -> dict[str, Any]:
    query = select(
        JobRow.id, JobRow.model, JobRow.state, JobRow.attempt, JobRow.progress, JobRow.error, JobRow.report,
        JobRow.result_model, JobRow.created_at, JobRow.started_at, JobRow.finished_at, JobRow.pause_requested_at,
        JobRow.recipe["domain"].as_string().label("domain"),
    ).order_by(JobRow.created_at.desc(), JobRow.id.desc())  # fmt: skip
    rows = [
        row._asdict() | {"error": ((row.error or {}).get("message") or "")[:MAX_TEXT_CHARS] or None}
        | {"report": _verdict(row.report)}
        for row in connection.execute(query.limit(MAX_JOBS))
    ]  # fmt: skip
    return _table(connection, JobRow, rows)


def _verdict(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a job's report what came out, and what the last gate measured, in nats per token."""
    if not report:
        return None
    gates = report.get("gates") or {}
    last: dict[str, Any] = gates[next(reversed(gates))] if gates else {}
    kept = last.get("kept", [])
    return {
        "outcome": report.get("outcome"),
        "gain": (last.get("gain") or {}).get("mean"),
        "forgetting": _worst(kept),
        "forgetting_from_best": _worst([change.get("best") or {} for change in kept]),
        "unmeasured": [change["domain"] for change in kept if change.get("measured") is False],
    }


def _worst(changes: Sequence[dict[str, Any]]) -> float | None:
    forgetting = [change.get("forgetting") for change in changes]
    return max((value for value in forgetting if value is not None), default=None)


def _batches(connection: Connection) -> dict[str, Any]:
    query = select(
        BatchRow.id, BatchRow.endpoint, BatchRow.state, BatchRow.total, BatchRow.completed, BatchRow.failed,
        BatchRow.created_at, BatchRow.finished_at,
    ).order_by(BatchRow.created_at.desc(), BatchRow.id.desc())  # fmt: skip
    return _table(
        connection, BatchRow, [row._asdict() for row in connection.execute(query.limit(MAX_BATCHES))]
    )
