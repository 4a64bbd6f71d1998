"""The services of deploy/containers/compose.yaml as processes, each held as a container would hold it.

Commands, environment, user, volumes and tmpfs are those that podman-compose resolves from the file. A service runs in
namespaces of its own (mounts, processes) on a read-only overlay of this machine's root, without capabilities, as its
own user; all share one network in which the services' names are 127.0.0.1. What the images would bring is this
machine's: Python and the sources, Debian's PostgreSQL, Redis and Prometheus. Needs root on Linux.
"""

import ctypes
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.serve.supervised import REPOSITORY, eventually

FOLDER = REPOSITORY / "deploy" / "containers"
CLONE_NEWNET = 0x40000000
BINARIES = {"valkey-server": "redis-server", "valkey-cli": "redis-cli"}
"""Debian's program that takes the place of an image's."""
ENTRY_POINTS = {"prometheus": ["prometheus"]}
"""Of images whose commands are options alone."""
OURS = ("setup", "gateway", "engines", "engines-gpu", "worker")

RUN = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir={root},upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
chmod o+x root
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
{mounts}
mount -o remount,ro /mnt/root
{environment}
exec chroot /mnt/root setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all -- {command}
"""


def why_not() -> str | None:
    """Why services cannot run here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and root"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode:
        return "this machine allows no namespaces"
    needed = ("redis-server", "prometheus", "setpriv", "ip", "wget")
    missing = [name for name in needed if not shutil.which(name)]
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        missing.append("postgresql")
    return f"not installed: {', '.join(missing)}" if missing else None


def resolved(env_file: Path, *more: Path) -> dict[str, Any]:
    """compose.yaml with the variables of a file, and further files over it, as podman-compose reads them.

    Raises AssertionError with what it says.
    """
    command = [
        Path(sys.executable).parent / "podman-compose",
        "--dry-run",
        "--profile",
        "gpu",
        "--env-file",
        env_file,
    ]
    files = [part for file in (FOLDER / "compose.yaml", *more) for part in ("-f", file)]
    done = subprocess.run(
        [*command, *files, "config"], cwd=FOLDER, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and the processes that it starts, in a network of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@dataclass(frozen=True)
class Image:
    """A built image: its files, and the environment that it sets."""

    root: Path
    environment: Mapping[str, str]


class Service:
    """One service; ``start`` it again after its end, as the restart policy would."""

    def __init__(self, stack: "Stack", name: str) -> None:
        self.stack = stack
        self.name = name
        self.described: dict[str, Any] = stack.file["services"][name]
        self.log = stack.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.image: Image | None = None
        """What it runs; None: this machine's programs."""

    def start(self, command: Sequence[str] | None = None) -> None:
        with self.log.open("ab") as log:
            entry = ENTRY_POINTS.get(self.name, [])
            self.process = self._popen(command or [*entry, *self.described["command"]], log)

    def run(self, *command: str) -> str:
        """As ``docker compose run --rm``: another command, in this service's place. Returns what it prints."""
        process = self._popen(command, subprocess.PIPE)
        printed = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 0, printed
        return printed

    def healthy(self) -> bool:
        """Whether the service's own check says so."""
        kind, *test = self.described["healthcheck"]["test"]
        checked = self._join([*test] if kind == "CMD" else ["sh", "-c", *test])
        return checked.returncode == 0

    def wait_healthy(self, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while not self.healthy():
            assert self.process and self.process.poll() is None, self.output
            assert time.monotonic() < deadline, (
                f"{self.name} is not healthy after {within_s:g} s:\n{self.output}"
            )
            time.sleep(0.5)  # each check starts a process

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def main(self) -> psutil.Process:
        """The process 1 of the container."""
        assert self.process
        unshare = psutil.Process(self.process.pid)
        return eventually(lambda: next(iter(unshare.children()), None))

    def kill(self) -> None:
        """SIGKILL, which takes everything in the container along."""
        self.main.kill()
        assert self.process
        self.process.wait(20)

    def stop(self) -> float:
        """SIGTERM, as ``docker compose stop``; the seconds that it took."""
        if self.process is None or self.process.poll() is not None:
            return 0.0
        started = time.monotonic()
        self.main.send_signal(signal.SIGINT if self.name == "postgres" else signal.SIGTERM)
        self.process.wait(_seconds(self.described["stop_grace_period"]))
        return time.monotonic() - started

    def _popen(self, command: Sequence[str], output: Any) -> subprocess.Popen[bytes]:
        script = RUN.format(
            root=self.image.root if self.image else "/",
            mounts="\n".join(self.stack.mounts(self)),
            uid=self._ids()[0],
            gid=self._ids()[1],
            environment="\n".join(
                f"export {key}={shlex.quote(str(value))}" for key, value in self.environment().items()
            ),
            command=shlex.join(command),
        )
        # The script comes by standard input: no command line shows a password.
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", 'eval "$(cat)" </dev/null'],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(script.encode())
        process.stdin.close()
        process.stdin = None
        return process

    def _join(self, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """As ``docker compose exec``: a command inside of the running container."""
        pid = str(self.main.pid)
        env = self.environment()
        inside = ["nsenter", "--target", pid, "--mount", "--pid", "--root", "--wd=/"]
        uid, gid = self._ids()
        drop = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--"]
        return subprocess.run(
            [*inside, *drop, *command], env=env, check=False, capture_output=True, timeout=30
        )

    def environment(self) -> dict[str, str]:
        if self.image:
            return {**self.image.environment, **self.described.get("environment", {})}
        own = {"PATH": self.stack.path}
        if self.name in OURS:
            own |= {"PYTHONPATH": str(REPOSITORY), **image_environment()}
        if self.name == "postgres":
            own["PGDATA"] = "/var/lib/postgresql/data"
        return own | self.described.get("environment", {})

    def _ids(self) -> tuple[str, str]:
        if self.name == "postgres":  # Debian's user has another number than the image's
            user = pwd.getpwnam("postgres")
            return str(user.pw_uid), str(user.pw_gid)
        uid, _, gid = str(self.described["user"]).partition(":")
        return uid, gid


class Stack:
    """All services, and the folders that are their volumes."""

    def __init__(self, folder: Path, env_file: Path, *more: Path) -> None:
        self.folder = folder
        self.file = resolved(env_file, *more)
        programs = folder / "programs"
        programs.mkdir()
        for name, debian in BINARIES.items():
            (programs / name).symlink_to(shutil.which(debian) or debian)
        postgres = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.path = ":".join(
            ["/programs", str(Path(sys.executable).parent), str(postgres), "/usr/sbin:/usr/bin:/sbin:/bin"]
        )
        self.services = {name: Service(self, name) for name in self.file["services"]}
        (folder / "hosts").write_text(
            "".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self.services))
        )
        for name in self.file["volumes"]:
            (folder / name).mkdir()
        for volume, owner in (("home", 10001), ("metrics", 10001), ("measured", 65534)):
            os.chown(folder / volume, owner, owner)
        (folder / "home").chmod(0o700)

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def init_postgres(self) -> None:
        """What the image's entry point does before the command: an empty database cluster, with this user and password."""
        data, user = self.folder / "database", pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        environment: Mapping[str, str] = self["postgres"].described["environment"]
        initdb = f"""
            set -e
            printf %s "$POSTGRES_PASSWORD" > /tmp/password
            initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --no-sync {environment["POSTGRES_INITDB_ARGS"]}
            echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
            echo "CREATE DATABASE {environment["POSTGRES_DB"]};" | postgres --single -j postgres
        """
        self["postgres"].run("sh", "-c", initdb)

    def mounts(self, service: Service) -> Iterator[str]:
        """Shell commands, run in the root of a container."""
        yield f"cp {self.folder}/hosts etc/hosts"
        for volume in service.described.get("volumes", []):
            source, target, *mode = volume.split(":")
            path = self.folder / source if source in self.file["volumes"] else (FOLDER / source).resolve()
            make = (
                f"mkdir -p .{target}"
                if path.is_dir()
                else f"mkdir -p .{Path(target).parent}; touch .{target}"
            )
            yield f"{make}; mount --bind {path} .{target}"
            if mode == ["ro"]:
                yield f"mount -o remount,bind,ro .{target}"
        for tmpfs in service.described.get("tmpfs", []):
            target, _, options = tmpfs.partition(":")
            yield f"mkdir -p .{target}; mount -t tmpfs -o noexec,nosuid,nodev,{options} tmpfs .{target}"
        if service.image:
            return
        yield f"mkdir programs; mount --bind {self.folder}/programs programs"
        yield "echo everlearn:x:10001:10001::/var/lib/everlearn:/bin/false >> etc/passwd"
        yield "echo everlearn:x:10001: >> etc/group"
        for path in (REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()):
            if path.is_relative_to("/tmp"):
                yield f"mkdir -p .{path}; mount --bind {path} .{path}"

    def close(self) -> None:
        for service in self.services.values():
            if service.process and service.process.poll() is None:
                service.kill()


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets for whatever runs in our images, but for the search path."""
    text = (FOLDER / "Dockerfile").read_text().partition("AS runtime")[2].partition("\nFROM")[0]
    found = dict(re.findall(r"(?:ENV|^ +)\s*([A-Z_]+)=(\S+)", text, re.MULTILINE))
    found.pop("PATH", None)
    return found


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))
