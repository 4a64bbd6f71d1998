"""Small real bundles, registries on SQLite, and on PostgreSQL where a server is installed."""

import functools
import itertools
import json
import os
import pwd
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import create_engine, text

from everlearn.bundles.bundle import BundleManifest, write_bundle
from everlearn.progress import silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings

FillBundle = Callable[..., BundleManifest]
AddVersion = Callable[..., Version]


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("everlearn", deadline=None, max_examples=60)
    hypothesis.settings.load_profile("everlearn")


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a test sets is set."""
    for name in list(os.environ):
        if name.upper().startswith("EVERLEARN_") or name.upper() in (
            "DATABASE_URL",
            "STORE_URL",
            "REDIS_URL",
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def safetensors_file() -> bytes:
    """A real safetensors file with one tensor of two floats."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.0, 2.0)


@pytest.fixture(scope="session")
def fill_bundle(safetensors_file: bytes) -> FillBundle:
    """Makes a directory a small bundle; ``salt`` makes it differ from another."""

    def fill(
        directory: Path, *, salt: str = "", format: str = "safetensors", **fields: object
    ) -> BundleManifest:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"model_type": "llama", "salt": salt}))
        (directory / "model.safetensors").write_bytes(safetensors_file)
        (directory / "1_Pooling").mkdir(exist_ok=True)
        (directory / "1_Pooling" / "config.json").write_text("{}")
        known = {"name": "tiny", "task": "generate", "architecture": "llama", "parameters": 2}
        return write_bundle(directory, format=format, **(known | fields))  # type: ignore[arg-type]

    return fill


@pytest.fixture
def bundle(tmp_path: Path, fill_bundle: FillBundle) -> Path:
    """A directory that is a bundle."""
    fill_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory; tests that change it copy it."""
    from tests.support.tiny_models import write_llama

    directory = tmp_path_factory.mktemp("llama")
    write_llama(directory)
    return directory


@pytest.fixture(scope="session")
def gguf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compress.targets.gguf import plain, write_gguf

    file = tmp_path_factory.mktemp("gguf") / "Tiny Model.gguf"
    write_gguf(llama, file, plain("f32"), silent)
    return file


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def registry(request: pytest.FixtureRequest, settings: Settings) -> Registry:
    """An empty registry, on each kind of database."""
    if request.param == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgres_url")})
    return Registry(settings)


@pytest.fixture
def add(fill_bundle: FillBundle) -> AddVersion:
    """Adds another version: ``add(registry, "tiny", format="onnx", parent=digest)``."""
    salts = itertools.count()

    def add_version(registry: Registry, model: str = "tiny", **fields: object) -> Version:
        with registry.staging() as staging:
            fill_bundle(staging, salt=f"{next(salts)}", **fields)
            return registry.add(staging, model)

    return add_version


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server of this test run's own, on a unix socket."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if not initdb:
        pytest.skip("no PostgreSQL server is installed")
    binaries = Path(initdb).parent
    # The server refuses to run as root, and a socket's path has room for about 100 bytes.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="elpg") as folder:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = f"{folder}/data"
        run = functools.partial(subprocess.run, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        run([initdb, "-D", data, "-U", "everlearn", "-A", "trust", "--no-sync"])
        options = (
            f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200 -c shared_buffers=16MB"
        )
        control = [str(binaries / "pg_ctl"), "-D", data, "-w"]
        run([*control, "-o", options, "-l", f"{folder}/log", "start"])
        try:
            yield f"postgresql+psycopg://everlearn@/postgres?host={folder}"
        finally:
            run([*control, "-m", "immediate", "stop"])


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """URL of the server's database, emptied."""
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres_server
