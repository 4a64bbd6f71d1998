"""Keeps one server of an edge folder running, and replaces it when there is a newer one.

The runner holds the listening socket, and each server accepts from it. A new server is started beside the old one, and
the old one is told to end once the new one has loaded its model and checked its probes; until then, and if that fails, the
old one serves. So no request is lost, and a folder that does not work here is never served.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import structlog

from deploy.edge.manifest import read_manifest, verify_files
from deploy.edge.native.listening import url_of
from deploy.updates.device.store import Device
from everlearn.errors import EverlearnError, NotFound, Unavailable
from everlearn.processes.program import describe_exit, environment, python

CHANNEL = "channel.json"
"""In the folder of a device that deploy.updates.device keeps up to date."""
TICK_S = 0.25
"""How often the link is looked at, and servers that start or end are."""
STOP_S = 45
"""After this a server that was told to end is killed: longer than it gives its running answers."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger()


@dataclass
class Server:
    """A process that serves ``folder``, or will once it has written to ``ready``."""

    folder: Path
    process: subprocess.Popen[bytes]
    ready: int

    def is_ready(self) -> bool:
        try:
            return os.read(self.ready, 1) == b"1"
        except BlockingIOError:
            return False


class Runner:
    """Serves the newest of ``folder`` on ``listener``, which stays open while servers come and go."""

    def __init__(self, folder: Path, listener: socket.socket, key: str | None, threads: int | None) -> None:
        self.folder = folder
        self.listener = listener
        self.environment = environment(EVERLEARN_HOME=os.environ.get("EVERLEARN_HOME", "/nonexistent"))
        if key is not None:
            self.environment["EVERLEARN_API_KEY"] = key
        if threads is not None:
            self.environment["EVERLEARN_ONNX__THREADS"] = str(threads)
        self.serving: Server | None = None
        self.coming: Server | None = None
        self.leaving: list[Server] = []
        self.refused: Path | None = None

    def run(self) -> int:
        """Serves until SIGTERM; returns the exit code. Raises what keeps the first folder from being served."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.coming = self.start(self.verified(newest(self.folder)))
            while True:
                received = signal.sigtimedwait(SIGNALS, TICK_S)
                if received and received.si_signo != signal.SIGHUP:
                    return 0
                if received:
                    self.refused = None
                if (code := self.settle()) is not None:
                    return code
                self.follow()
        finally:
            self.stop()

    def verified(self, folder: Path) -> Path:
        """``folder`` with every byte as edge.json says. Raises NotFound, Corrupt or Unsupported naming the file."""
        if not folder.is_dir():
            raise NotFound(f"{folder} is not a folder; everlearn deploy edge makes one")
        manifest = read_manifest(folder)
        log.info(
            "verifying", folder=str(folder), model=f"{manifest.model}@{manifest.version}", form=manifest.form
        )
        verify_files(folder, manifest)
        return folder

    def start(self, folder: Path) -> Server:
        ready, told = os.pipe()
        os.set_blocking(ready, False)
        options = ["--folder", str(folder), "--fd", str(self.listener.fileno()), "--ready-fd", str(told)]
        process = subprocess.Popen(
            python("serve.edge", *options),
            stdin=subprocess.PIPE,  # it ends as this process does
            env=self.environment,
            pass_fds=(self.listener.fileno(), told),
            preexec_fn=let_signals_end_it,  # noqa: PLW1509 (this process has one thread)
        )
        os.close(told)
        return Server(folder, process, ready)

    def settle(self) -> int | None:
        """Lets a server that is ready take over; the exit code where none is left to serve."""
        if self.coming and self.coming.is_ready():
            os.close(self.coming.ready)
            if self.serving:
                self.serving.process.terminate()
                self.leaving.append(self.serving)
            self.serving, self.coming = self.coming, None
            log.info("ready", url=url_of(self.listener), folder=str(self.serving.folder))
            tell_systemd(f"READY=1\nSTATUS=Serving {self.serving.folder}")
        elif self.coming and (code := self.coming.process.poll()) is not None:
            os.close(self.coming.ready)
            if not self.serving:
                return code or 1
            self.refuse(self.coming.folder, f"its server {describe_exit(code)}")
            self.coming = None
        self.leaving = [one for one in self.leaving if one.process.poll() is None]
        if self.serving and (code := self.serving.process.poll()) is not None:
            log.error("the server has ended by itself", how=describe_exit(code))
            return code or 1
        return None

    def follow(self) -> None:
        """Starts a server for another folder that is to be served by now."""
        if self.serving is None or self.coming:
            return
        try:
            folder = newest(self.folder)
        except (EverlearnError, OSError) as error:
            if self.refused != self.folder:
                self.refuse(self.folder, str(error))
            return
        if folder == self.refused:
            return
        self.refused = None
        if folder == self.serving.folder:
            return
        try:
            self.coming = self.start(self.verified(folder))
        except (EverlearnError, OSError) as error:
            self.refuse(folder, str(error))

    def refuse(self, folder: Path, why: str) -> None:
        """The old one goes on; ``folder`` is tried again after SIGHUP."""
        self.refused = folder
        log.error("not served; the former folder still is", folder=str(folder), why=why)

    def stop(self) -> None:
        """Ends all servers, after their running answers."""
        tell_systemd("STOPPING=1")
        left = [one.process for one in (self.coming, self.serving, *self.leaving) if one]
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def newest(folder: Path) -> Path:
    """What ``folder`` points to, by a link or as the folder of a device that is updated.

    Raises NotFound, Corrupt, Unavailable where this user may not read it.
    """
    folder = folder.resolve()
    try:
        if (folder / CHANNEL).is_file():
            return Device(folder).current().resolve()
    except PermissionError as error:
        raise Unavailable(
            f"{error.filename}: this user may not read it; whoever updates the folder may"
        ) from None
    return folder


def let_signals_end_it() -> None:
    """In the child, between fork and exec: this process waits for signals, and its children would, too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def tell_systemd(state: str) -> None:
    """sd_notify(3), where systemd asks for it."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            systemd.send(state.encode())
