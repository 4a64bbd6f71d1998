"""`make test-image`: the image `gateway`, built by buildah on a Debian base, answers from a read-only root.

No registry is needed, and no container runtime: the image's files are run as `tests.support.serve.composed` runs services.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve.composed import REPOSITORY, Image, Stack, own_network, why_not
from tests.support.serve.supervised import eventually
from tests.support.tiny_models import write_llama

MISSING = [name for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
ASKED = os.environ.get("EVERLEARN_TEST_IMAGE") == "1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not ASKED, reason="it takes minutes: make test-image"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

BASE = "localhost/everlearn-base"
NAME = "localhost/everlearn-gateway"
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")


@dataclass(frozen=True)
class Built:
    """A working container of an image, and the image's configuration."""

    container: str
    root: Path
    config: dict[str, Any]
    size_bytes: int
    build_s: float


class Buildah:
    """buildah with storage of its own."""

    def __init__(self, storage: Path) -> None:
        self.command = [
            "buildah",
            "--storage-driver",
            "vfs",
            "--root",
            f"{storage}/root",
            "--runroot",
            f"{storage}/run",
        ]

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self.command, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Its images, of more than a gigabyte, are not kept."""
    storage = tmp_path_factory.mktemp("images")
    yield Buildah(storage)
    shutil.rmtree(storage)


@pytest.fixture(scope="module")
def base(buildah: Buildah) -> str:
    """Debian with Python; its archive is kept between runs."""
    archive = REPOSITORY / ".cache" / "image-base.tar"
    if not archive.is_file():
        packages = "--include=python3,python3-venv,ca-certificates"
        made = archive.with_suffix(f".{os.getpid()}.tar")
        subprocess.run(["mmdebstrap", "--variant=minbase", packages, "bookworm", made], check=True)
        made.replace(archive)
    container = buildah("from", "scratch")
    buildah("add", container, archive, "/")
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(buildah: Buildah, base: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    pip = tmp_path_factory.mktemp("pip") / "pip.conf"
    pip.write_text("[global]\n" + "".join(f"{line}\n" for line in pip_options()))
    started = time.monotonic()
    buildah(
        "bud", "--format", "docker", "--isolation", "chroot", "--build-arg", f"BASE={base}", "--target", "gateway",
        "--secret", f"id=pip,src={pip}", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro",
        "--file", "deploy/containers/Dockerfile", "--tag", NAME, ".",
    )  # fmt: skip
    build_s = time.monotonic() - started
    described = json.loads(buildah("inspect", "--type", "image", NAME))["Docker"]
    container = buildah("from", NAME)
    root = Path(buildah("mount", container))
    size_bytes = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
    print(f"\nbuilt in {build_s:.0f} s, {size_bytes / 1e6:.0f} MB with its base")
    return Built(container, root, described["config"], size_bytes, build_s)


def pip_options() -> Iterator[str]:
    """Where this machine's pip looks, as far as another root can look there, too."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        if name.rpartition(".")[2] in PIP_OPTIONS and "file:" not in value:
            yield f"{name.rpartition('.')[2]} = {value.strip(chr(39))}"


def test_it_runs_as_a_user_without_rights_and_is_asked_for_its_health(image: Built) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["Healthcheck"]["Test"] == ["CMD", "everlearn", "health", "http://127.0.0.1:8000"]
    assert image.config["Cmd"] == ["python", "-P", "-m", "serve.gateway"]
    home = (image.root / "var/lib/everlearn").stat()
    assert (home.st_uid, home.st_gid, home.st_mode & 0o777) == (10001, 10001, 0o700)
    own = [path for path in (image.root / "opt").rglob("*") if path.lstat().st_uid == 10001]
    assert not own, "what the process may change is not what it runs"


def test_it_has_no_compiler_no_model_library_and_nothing_private(image: Built) -> None:
    programs = {path.name for path in (image.root / "usr/bin").iterdir()}
    assert not programs & {"gcc", "cc", "g++", "make", "ld", "git"}
    packages = {
        path.name for path in next((image.root / "opt/venv/lib").glob("python3*/site-packages")).iterdir()
    }
    assert "fastapi" in packages and "psycopg" in packages
    assert not packages & {"torch", "numpy", "onnxruntime", "transformers"}
    sources = image.root / "opt/everlearn"
    assert {path.name for path in (sources / "deploy/containers").iterdir()} <= {
        "__init__.py", "__pycache__", "postgres.lock", "setup.py",
    }  # fmt: skip
    assert not [*sources.rglob(".env*"), *sources.glob(".git"), *sources.glob("tests")]
    assert not list((image.root / "root").glob(".cache/*"))


def test_buildah_runs_its_program(buildah: Buildah, image: Built) -> None:
    said = buildah("run", "--isolation", "chroot", image.container, "--", "everlearn", "version")
    assert said.splitlines()[-1][0].isdigit()


def test_its_gateway_answers_from_a_read_only_root(image: Built, tmp_path: Path, env_file: Path) -> None:
    """`setup` and `gateway` run from the image, the engine on this machine, all as compose.yaml says."""
    environment = dict(setting.split("=", 1) for setting in image.config["Env"])
    folder = tmp_path / "stack"
    folder.mkdir()
    with own_network():
        stack = Stack(folder, env_file)
        for name in ("setup", "gateway"):
            stack[name].image = Image(image.root, environment)
        try:
            stack.init_postgres()
            for name in ("postgres", "valkey"):
                stack[name].start()
                stack[name].wait_healthy()
            assert "was made" in stack["setup"].run(*stack["setup"].described["command"])
            made = stack["gateway"].run("everlearn", "keys", "create", "tests", "--json")
            key = json.loads(made.splitlines()[-1] if made.startswith('{"') else made)["secret"]
            started = time.monotonic()
            stack["gateway"].start()
            stack["gateway"].wait_healthy()
            print(f"\nhealthy after {time.monotonic() - started:.1f} s", end=", ")
            resident = sum(child.memory_info().rss for child in [stack["gateway"].main])
            print(f"{resident / 1e6:.0f} MB resident")
            refused = stack["gateway"].run("python", "-c", WRITE)
            assert refused.strip() == "Read-only file system"
            source = folder / "home" / "tiny-hf"
            write_llama(source)
            for path in (source, *source.iterdir()):
                os.chown(path, 10001, 10001)
            stack["engines"].run("everlearn", "import", "/var/lib/everlearn/tiny-hf", "--name", "tiny")
            stack["engines"].run("everlearn", "compress", "tiny", "--to", "int8-onnx")
            stack["engines"].start()
            stack["engines"].wait_healthy(90)
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "And God said"}],
                "max_tokens": 8,
            }

            def answer() -> httpx.Response | None:
                said = httpx.post(
                    "http://127.0.0.1:8000/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"},
                    timeout=30,
                )  # fmt: skip
                return said if said.status_code == 200 else None

            said = eventually(answer, within_s=60)
            assert said and said.json()["choices"][0]["message"]["content"]
            assert stack["gateway"].stop() < 40 and stack["gateway"].process.returncode == 0  # type: ignore[union-attr]
        finally:
            stack.close()


WRITE = """
import os
try:
    open("/opt/everlearn/written", "w")
except OSError as error:
    print(os.strerror(error.errno))
"""
