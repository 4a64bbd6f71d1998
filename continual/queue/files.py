"""Uploaded files: a row says what there is, ``files/<id>`` under the home holds the bytes.

The bytes are flushed under their final name before the row is committed, and the row is gone before they are:
whenever a process dies, no row names half a file; bytes that no row names are swept away later.
The gateway imports this: nothing heavy here.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, cast

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, and_, insert, or_, select, true, update

from continual.queue.check_file import check_examples
from everlearn.bundles.durable import sync_directory
from everlearn.errors import Conflict, EverlearnError, InvalidInput, NotFound
from everlearn.registry.database import open_database, read, write
from everlearn.registry.tables import BatchRow, FileRow, JobRow
from everlearn.settings import Settings

PURPOSE = "fine-tune"
BATCH = "batch"
PURPOSES = (PURPOSE, BATCH)
"""What clients may upload files for."""
BATCH_OUTPUT = "batch_output"
RESULTS = "fine-tune-results"
MAX_NAME_CHARS = 200
SWEEP_AFTER_S = 3600
CHUNK_BYTES = 1024**2
PARTIAL = ".partial-"

log = structlog.stdlib.get_logger("continual.files")


class FileTooLarge(EverlearnError):
    """More bytes than this installation takes in one file."""

    exit_code = 2
    status = 413
    code = "file_too_large"


@dataclass(frozen=True)
class Client:
    """Who asks through the API, so that each sees only its own: the id of a key, or None for no key."""

    key_id: str | None = None

    @property
    def actor(self) -> str:
        """As the audit log names it."""
        return self.key_id or "without a key"


@dataclass(frozen=True)
class File:
    """A row of the table."""

    id: str
    key_id: str | None
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: float
    deleted_at: float | None


class Upload:
    """A file on its way in: bytes go to disk as they come. Made by :meth:`Files.uploading`."""

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Raises FileTooLarge before more than the limit is written."""
        self.size_bytes += len(chunk)
        if self.size_bytes > self._limit_bytes:
            raise FileTooLarge(
                f"the file is larger than {self._limit_bytes} bytes, the most that this server takes "
                "(continual.max_file_bytes)",
                param="file",
            )
        self._hash.update(chunk)
        self._stream.write(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Files:
    """The files of one installation. Everything that reaches the database may raise Unavailable."""

    def __init__(self, settings: Settings, database: Engine | None = None) -> None:
        self.settings = settings
        self.database = database or open_database(settings)
        self.folder = settings.directory("files")

    @contextmanager
    def uploading(self, limit_bytes: int | None = None) -> Generator[Upload]:
        """A place to write a new file to; :meth:`keep` makes it one. What is not kept is gone at the end.

        ``limit_bytes`` None: the setting for uploads.
        """
        with NamedTemporaryFile(dir=self.folder, prefix=PARTIAL, delete=False) as stream:
            try:
                yield Upload(stream, limit_bytes or self.settings.continual.max_file_bytes)
            finally:
                Path(stream.name).unlink(missing_ok=True)

    def check(self, upload: Upload, filename: str) -> None:
        """Reads a complete upload that is to be learnt from. Raises InvalidInput naming the line at fault."""
        if upload.size_bytes:
            stream = upload._stream  # pyright: ignore[reportPrivateUsage]
            stream.flush()
            check_examples(Path(stream.name), plain_name(filename), self.settings.continual)

    def keep(
        self,
        upload: Upload,
        filename: str,
        *,
        purpose: str = PURPOSE,
        client: Client | None = None,
        within: Callable[[Connection, File], None] | None = None,
    ) -> File:
        """Makes a complete upload a file: all of it is durable before it is listed. Raises InvalidInput.

        ``within`` writes more in the same transaction.
        """
        file = self.place(upload, filename, purpose=purpose, key_id=client.key_id if client else None)
        with write(self.database) as connection:
            insert_file(connection, file)
            if within:
                within(connection, file)
        log.info("file uploaded", file=file.id, size_bytes=file.size_bytes)
        return file

    def place(self, upload: Upload, filename: str, *, purpose: str, key_id: str | None) -> File:
        """A complete upload's bytes where they stay, durable; without a row of :class:`FileRow` they are swept away later.

        Raises InvalidInput for an empty one.
        """
        if not upload.size_bytes:
            raise InvalidInput("the file is empty", param="file")
        stream = upload._stream  # pyright: ignore[reportPrivateUsage]
        stream.flush()
        os.fsync(stream.fileno())
        file = File(
            id=f"file-{secrets.token_hex(12)}",
            key_id=key_id,
            filename=plain_name(filename),
            purpose=purpose,
            size_bytes=upload.size_bytes,
            sha256=upload.sha256,
            created_at=time.time(),
            deleted_at=None,
        )
        os.replace(stream.name, self.folder / file.id)
        sync_directory(self.folder)
        return file

    def add(self, path: Path, *, client: Client | None = None) -> File:
        """A copy of a file of this machine. Raises InvalidInput, FileTooLarge, OSError."""
        with path.open("rb") as source, self.uploading() as upload:
            while chunk := source.read(CHUNK_BYTES):
                upload.write(chunk)
            return self.keep(upload, path.name, client=client)

    def get(self, file_id: str, *, client: Client | None = None) -> File:
        """Raises NotFound, for a deleted file too."""
        with read(self.database) as connection:
            return require_file(connection, file_id, client)

    def path(self, file: File) -> Path:
        """Where the bytes are."""
        return self.folder / file.id

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 10_000,
        ascending: bool = False,
        purpose: str | None = None,
        client: Client | None = None,
    ) -> Sequence[File]:
        """The newest first, or ``ascending``; those behind the file ``after`` in that order. Raises NotFound."""
        created, identity = FileRow.created_at, FileRow.id
        with read(self.database) as connection:
            query = select(FileRow.__table__).where(
                FileRow.deleted_at.is_(None), owned(FileRow.key_id, client)
            )
            if purpose is not None:
                query = query.where(FileRow.purpose == purpose)
            if after is not None:
                last = require_file(connection, after, client)
                beyond = created > last.created_at if ascending else created < last.created_at
                later = identity > last.id if ascending else identity < last.id
                query = query.where(or_(beyond, and_(created == last.created_at, later)))
            order = (created, identity) if ascending else (created.desc(), identity.desc())
            return [_file(row) for row in connection.execute(query.order_by(*order).limit(limit))]

    def delete(self, file_id: str, *, client: Client | None = None) -> File:
        """Raises NotFound, and Conflict while a job that is not over needs the file."""
        with write(self.database) as connection:
            file = require_file(connection, file_id, client)
            uses = or_(JobRow.training_file == file_id, JobRow.validation_file == file_id)
            waiting = select(JobRow.id).where(uses, JobRow.finished_at.is_(None))
            batches = select(BatchRow.id).where(
                BatchRow.input_file == file_id, BatchRow.finished_at.is_(None)
            )
            if user := connection.scalar(waiting.limit(1)) or connection.scalar(batches.limit(1)):
                raise Conflict(
                    f"{user} still needs {file_id}: cancel it, or wait for its end", param="file_id"
                )
            gone = update(FileRow).where(FileRow.id == file_id).values(deleted_at=time.time())
            connection.execute(gone)
        self.path(file).unlink(missing_ok=True)
        log.info("file deleted", file=file_id)
        return file

    def sweep(self, now: float | None = None) -> int:
        """Removes bytes that no row names and that no upload of the last hour left; returns how many files."""
        aged = [path for path in self.folder.iterdir() if _age_s(path, now or time.time()) > SWEEP_AFTER_S]
        if not aged:
            return 0
        with read(self.database) as connection:
            named = set(connection.scalars(select(FileRow.id).where(FileRow.deleted_at.is_(None))))
        doomed = [path for path in aged if path.name not in named]
        for path in doomed:
            path.unlink(missing_ok=True)
        return len(doomed)


def insert_file(connection: Connection, file: File) -> None:
    """Lists a file whose bytes are in their place."""
    connection.execute(insert(FileRow).values(file.__dict__))


def owned(column: Any, client: Client | None) -> ColumnElement[bool]:
    """Rows that a client may see; without a client, so at the command line, all."""
    return true() if client is None else column.is_not_distinct_from(client.key_id)


def require_file(connection: Connection, file_id: str, client: Client | None, param: str = "file_id") -> File:
    """Raises NotFound naming ``param``, the same for no file and for another client's."""
    there = and_(FileRow.id == file_id, FileRow.deleted_at.is_(None), owned(FileRow.key_id, client))
    row = connection.execute(select(FileRow.__table__).where(there)).first()
    if row is None:
        raise NotFound(f"there is no file {file_id[:80]!r}", param=param)
    return _file(row)


def check_purpose(purpose: str) -> None:
    """Raises InvalidInput unless a client may upload files for it."""
    if purpose not in PURPOSES:
        offered = " and ".join(map(repr, PURPOSES))
        raise InvalidInput(
            f"files are taken here for the purposes {offered}, not {purpose[:80]!r}", param="purpose"
        )


def plain_name(filename: str) -> str:
    """A name to show, from what a client sent: no folders, nothing unprintable; it never becomes a path here."""
    last = re.split(r"[/\\]", filename)[-1]
    shown = "".join(char for char in last if char.isprintable()).strip()
    stem, dot, ending = shown.rpartition(".")
    if len(shown) > MAX_NAME_CHARS:
        ending = ending[:16] if dot else ""
        shown = f"{(stem or shown)[: MAX_NAME_CHARS - 17]}{dot}{ending}"
    return shown if shown.strip(".") else "file"


def _file(row: Any) -> File:
    return File(**cast("dict[str, Any]", dict(row._mapping)))


def _age_s(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
